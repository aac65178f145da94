"""The executor on small programs written by hand, where what must be found is plain."""

import numpy as np
import pytest

from training.parallel.schedule import Action, Kind
from training.rehearsal.actors import rank_classes
from training.rehearsal.execution import execute
from training.rehearsal.findings import Finding
from training.rehearsal.grid import Grid, GroupKind
from training.rehearsal.operations import Collective as C
from training.rehearsal.operations import CollectiveKind, Operation, Receive, Send, all_reduce
from training.rehearsal.program import Phase, Texts

SUM = all_reduce(GroupKind.shards, 8, "float32", "sum")
NORM = all_reduce(GroupKind.world, 1, "float64", "norm")
RESULT = Action(Kind.forward, 0, 0)


def run(grid: Grid, *texts: tuple[Operation, ...], of_rank: list[int]) -> list[Finding]:
    return execute(Phase.start, Texts(texts, np.array(of_rank, np.int32)), grid, None)


def test_equal_programs_end() -> None:
    assert run(Grid(pipeline=2, data=2), (SUM, NORM), of_rank=[0] * 4) == []


def test_two_groups_in_another_order_wait_for_each_other_and_are_named() -> None:
    (finding,) = run(Grid(pipeline=2, data=2), (SUM, NORM), (NORM, SUM), of_rank=[0, 0, 0, 1])
    assert 3 in finding.ranks
    assert "wait for each other" in finding.message
    assert "rank 2 (pipeline stage 1, replica 0) stands at: all-reduce of 8" in finding.message
    assert "rank 3 (pipeline stage 1, replica 1) stands at: all-reduce of 1 float64" in finding.message


def test_a_rank_that_does_something_else_in_a_group_is_named_and_the_many_are_right() -> None:
    other = C(CollectiveKind.all_gather, GroupKind.shards, 8, "float32", about="gather")
    (finding,) = run(Grid(data=5), (SUM, NORM), (other, NORM), of_rank=[0, 0, 1, 0, 0])
    assert finding.ranks == (2,)
    assert "starts all-gather of 8 float32 over replicas (gather), where the other members start all-reduce" in (
        finding.message
    )


def test_a_rank_that_ends_too_early_is_named() -> None:
    (finding,) = run(Grid(data=3), (SUM, NORM), (SUM,), of_rank=[0, 0, 1])
    assert finding.ranks == (2,)
    assert "has ended, but ranks 0-1 (pipeline stage 0) stands at: all-reduce of 1 float64" in finding.message


def test_both_ends_of_a_transfer_are_named_if_they_do_not_fit() -> None:
    send, receive = Send(RESULT, 1, 16, "float32"), Receive(RESULT, 0, 15, "float32")
    findings = run(Grid(pipeline=2), (send,), (receive,), of_rank=[0, 1])
    assert any("two ends that do not fit" in finding.message for finding in findings)
    assert any("(16 float32)" in finding.message and "(15 float32)" in finding.message for finding in findings)


def test_two_ranks_that_both_send_first_wait_for_each_other() -> None:
    there, back = RESULT, Action(Kind.backward, 1, 0)
    first = (Send(there, 1, 4, "float32"), Receive(back, 1, 4, "float32"))
    second = (Send(back, 0, 4, "float32"), Receive(there, 0, 4, "float32"))
    (finding,) = run(Grid(pipeline=2), first, second, of_rank=[0, 1])
    assert "wait for each other" in finding.message


def test_a_rank_in_no_such_group_is_named() -> None:
    tied = all_reduce(GroupKind.tied, 4, "float32", "tied gradient")
    findings = run(Grid(pipeline=3), (tied,), (tied,), (tied,), of_rank=[0, 1, 2])
    assert [finding.ranks for finding in findings] == [(1,)]
    assert "is in no such group" in findings[0].message


@pytest.mark.parametrize(("odd", "num_classes"), [(None, 4), (5, 8)])
def test_one_odd_rank_sets_its_pipeline_and_its_replicas_apart(odd: int | None, num_classes: int) -> None:
    grid = Grid(pipeline=4, data=250)
    texts = np.repeat(np.arange(4, dtype=np.int32), 250)
    if odd is not None:
        texts[odd] = 4
    groups = {kind: grid.groups(kind) for kind in (GroupKind.pipeline, GroupKind.shards, GroupKind.world)}
    classes = rank_classes(texts, groups)
    assert classes.max() + 1 == num_classes
    for rows in groups.values():  # equitable: a class tells what classes its groups are made of
        seen: dict[int, list[int]] = {}
        for row in rows:
            members = sorted(classes[row].tolist())
            for one in members:
                assert seen.setdefault(one, members) == members

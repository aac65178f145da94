"""Whoever does not come is blamed, whatever the others wait in."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from training.engine.collectives import shown_ranks
from training.fault_tolerance.blame import Status, blame, members


class Job:
    """Ranks go through a list of collectives; one of them stops at some moment, the others once they must wait."""

    def __init__(
        self, world_size: int, calls: list[tuple[str, tuple[int, ...]]], culprit: int, stops_before: int
    ) -> None:
        self.started: list[Counter[str]] = [Counter() for _ in range(world_size)]
        self.waits = [False] * world_size
        self.at = [0] * world_size
        self.calls = calls
        programs = [[number for number, (_, ranks) in enumerate(calls) if rank in ranks] for rank in range(world_size)]
        self.stuck = False
        entered: list[set[int]] = [set() for _ in calls]
        moving = True
        while moving:
            moving = False
            for rank, program in enumerate(programs):
                while self.at[rank] < len(program):
                    number = program[self.at[rank]]
                    if rank == culprit and self.at[rank] >= stops_before:
                        self.stuck = True
                        break
                    if rank not in entered[number]:
                        entered[number].add(rank)
                        self.started[rank][calls[number][0]] += 1
                        moving = True
                    self.waits[rank] = len(entered[number]) < len(calls[number][1])
                    if self.waits[rank]:
                        break
                    self.at[rank] += 1
                    moving = True

    def table(self) -> dict[int, Status]:
        return {
            rank: Status(beat=1, section="step", step=1, seconds=1.0, waits=self.waits[rank], started=dict(counts))
            for rank, counts in enumerate(self.started)
        }


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Job, int, int]:
    world_size = draw(st.integers(2, 9))
    ranks = st.sets(st.integers(0, world_size - 1), min_size=2).map(sorted)
    groups = draw(st.lists(ranks, min_size=1, max_size=5, unique_by=tuple))
    keys = [
        (f"{number} {shown_ranks(group)}" if len(group) > 2 else f"{number} {group[0]}>{group[1]}", tuple(group))
        for number, group in enumerate(groups)
    ]
    calls = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=30))
    culprit = draw(st.integers(0, world_size - 1))
    return Job(world_size, calls, culprit, draw(st.integers(0, 10))), culprit, world_size


@given(jobs())
@settings(max_examples=300, deadline=None)
def test_the_rank_that_stopped_is_blamed_by_everyone_who_waits(case: tuple[Job, int, int]) -> None:
    job, culprit, world_size = case
    for accuser, waits in enumerate(job.waits):
        if waits and accuser != culprit:
            assert job.stuck
            found = blame(job.table(), accuser=accuser, silent=[], world_size=world_size)
            assert found.ranks == (culprit,), job.table()
            assert not found.silent


@given(jobs(), st.data())
@settings(max_examples=100, deadline=None)
def test_who_says_nothing_comes_before_all_others(case: tuple[Job, int, int], data: st.DataObject) -> None:
    job, _, world_size = case
    ranks = st.integers(0, world_size - 1)
    silent, missing, accuser = data.draw(st.sets(ranks)), data.draw(st.sets(ranks)), data.draw(ranks)
    silent, missing = silent - {accuser}, missing - {accuser}
    table = {rank: said for rank, said in job.table().items() if rank not in missing}
    found = blame(table, accuser=accuser, silent=silent & table.keys(), world_size=world_size)
    assert found.silent == bool(silent | missing)
    if found.silent:
        assert found.ranks == tuple(sorted(silent | missing))


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_every_set_of_ranks_is_written_and_read(world_size: int, draw: random.Random) -> None:
    ranks = sorted(draw.sample(range(100), world_size))
    assert members(f"name {shown_ranks(ranks)}") == ranks
    assert members(f"name {shown_ranks(range(3, 3 + 4 * world_size, 4))}") == list(range(3, 3 + 4 * world_size, 4))
    assert members("name 3>1") == [3, 1]


def test_a_rank_that_waits_for_nobody_is_to_blame_itself() -> None:
    table = {rank: Status(beat=1, section="data", step=4, seconds=9, started={"0 0-1": 7}) for rank in range(2)}
    assert blame(table, accuser=0, silent=[], world_size=2).ranks == (0,)


def test_nobody_is_blamed_if_all_have_begun_the_same() -> None:
    table = {
        rank: Status(beat=1, section="step", step=4, seconds=9, waits=True, started={"0 0-2": 7}) for rank in range(3)
    }
    found = blame(table, accuser=1, silent=[], world_size=3)
    assert found.ranks == ()
    assert "all wait for each other" in found.reason


def test_of_two_that_wait_for_each_other_the_one_that_is_not_where_the_others_are_is_blamed() -> None:
    """Rank 2 went into the evaluation, the others into the next step: each waits for the other."""
    here = {
        rank: Status(beat=1, section="step", step=4, seconds=9, waits=True, started={"0 0-2": 7, "1 0-2": 3})
        for rank in (0, 1)
    }
    there = Status(beat=1, section="evaluation", step=3, seconds=9, waits=True, started={"0 0-2": 6, "1 0-2": 4})
    assert blame({**here, 2: there}, accuser=0, silent=[], world_size=3).ranks == (2,)


def test_where_the_host_cannot_see_the_waiting_the_one_that_has_begun_least_is_blamed() -> None:
    """On accelerators every rank may be waiting."""
    started = [{"0 0-3": 9}, {"0 0-3": 9}, {"0 0-3": 8}, {"0 0-3": 9}]
    table = {r: Status(beat=1, section="step", step=4, seconds=9, waits=True, started=s) for r, s in enumerate(started)}
    assert blame(table, accuser=0, silent=[], world_size=4).ranks == (2,)

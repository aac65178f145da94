import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.checkpoint.simulated_ranks import (
    ALONE,
    SimulatedRanks,
    fragments_of,
    on_ranks,
    progress_at,
)
from training.checkpoint.load import CheckpointReader
from training.checkpoint.saver import SaveOutcome, Saver
from training.checkpoint.snapshot import Snapshot
from training.errors import RunInUse, SaveFailed


def begin(saver: Saver, snapshot: Snapshot, directory: Path, step: int = 1) -> None:
    saver.begin(snapshot, directory=directory, progress=progress_at(step), layout="")


def test_what_is_saved_is_the_state_at_the_step_whatever_training_does_meanwhile(tmp_path: Path) -> None:
    training_may_go_on = threading.Event()
    fragments = fragments_of(0, 1, 1)
    expected = fragments[0].tensors["weight"].clone()

    def wait_for_training(point: str, _step: int) -> None:
        if point == "snapshot_taken":
            assert training_may_go_on.wait(20)

    saver = Saver(ALONE, config={}, at_point=wait_for_training)
    snapshot = Snapshot(fragments)
    begin(saver, snapshot, tmp_path)
    assert saver.in_flight
    assert not saver.is_written
    snapshot.settle()
    fragments[0].tensors["weight"].fill_(7.0)
    training_may_go_on.set()
    outcome = saver.finish()
    assert outcome.checkpoint == tmp_path / "step-00000001"
    assert outcome.checkpoint is not None
    found = CheckpointReader(outcome.checkpoint).read(f"weight/{fragments[0].parameter}", 0, len(expected))
    assert torch.equal(torch.from_numpy(found), expected)
    assert not saver.in_flight
    assert outcome.stall_seconds >= 0


def test_an_update_waits_for_the_copy_and_the_wait_counts_as_stall(tmp_path: Path) -> None:
    fragments = fragments_of(0, 1, 1)
    snapshot = Snapshot(fragments)
    snapshot.expect_take()
    settled = threading.Event()
    update = threading.Thread(target=lambda: (snapshot.settle(), settled.set()), daemon=True)
    update.start()
    assert not settled.wait(0.2)
    snapshot.take()
    assert settled.wait(20)
    assert snapshot.waited_seconds >= 0.2
    snapshot.expect_take()
    assert snapshot.waited_seconds == 0


def test_a_copy_that_fails_lets_training_go_on_to_hear_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(fragments_of(0, 1, 1))

    def fail() -> None:
        raise MemoryError("no room for the copy")

    monkeypatch.setattr(snapshot, "_copy", fail)
    saver = Saver(ALONE, config={})
    begin(saver, snapshot, tmp_path)
    snapshot.settle()
    with pytest.raises(MemoryError, match="no room"):
        saver.finish()


def test_a_failed_save_is_an_outcome_on_every_rank_and_the_next_one_succeeds(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")

    def work(ranks: SimulatedRanks) -> list[SaveOutcome]:
        saver = Saver(ranks, config={})
        snapshot = Snapshot(fragments_of(ranks.rank, 2, 1))
        outcomes = []
        for step in (1, 2):
            begin(saver, snapshot, tmp_path / "checkpoints", step)
            outcomes.append(saver.finish())
            if step == 1 and ranks.rank == 0:
                (tmp_path / "checkpoints").unlink()
            ranks.agree(True)
        return outcomes

    for failed, succeeded in on_ranks(2, work):
        assert failed.checkpoint is None
        assert isinstance(failed.failure, SaveFailed)
        assert "in the way" not in str(failed.failure)
        assert succeeded.checkpoint == tmp_path / "checkpoints" / "step-00000002"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_start_that_was_replaced_ends(asynchronous: bool, tmp_path: Path) -> None:
    def check_lease() -> None:
        raise RunInUse("replaced")

    saver = Saver(ALONE, config={}, check_lease=check_lease, asynchronous=asynchronous)
    begin(saver, Snapshot(fragments_of(0, 1, 1)), tmp_path)
    with pytest.raises(RunInUse):
        saver.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_bug_in_the_writing_thread_is_raised_not_lost(tmp_path: Path) -> None:
    def buggy(point: str, _step: int) -> None:
        if point == "file_written":
            raise ZeroDivisionError("a bug")

    saver = Saver(ALONE, config={}, at_point=buggy)
    begin(saver, Snapshot(fragments_of(0, 1, 1)), tmp_path)
    with pytest.raises(ZeroDivisionError):
        saver.finish()


def test_without_asynchronous_everything_is_written_when_begin_returns(tmp_path: Path) -> None:
    saver = Saver(ALONE, config={}, asynchronous=False)
    begin(saver, Snapshot(fragments_of(0, 1, 1)), tmp_path)
    assert saver.is_written
    assert (tmp_path / "step-00000001" / "manifest.json").is_file()
    outcome: Any = saver.finish()
    assert outcome.stall_seconds >= outcome.write_seconds

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.checkpoint.simulated_ranks import (
    SimulatedRanks,
    fragments_of,
    on_ranks,
    order,
    save,
    saved,
)
from training.checkpoint.catalog import committed, verify
from training.checkpoint.commit import POINTS, write_checkpoint
from training.checkpoint.snapshot import Snapshot
from training.errors import RunInUse, SaveFailed


def test_a_commit_leaves_the_manifest_and_one_file_per_rank(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, num_ranks=2)
    assert {path.name for path in checkpoint.iterdir()} == {
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    }
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_the_protocol_passes_its_points_in_order(tmp_path: Path) -> None:
    seen: list[str] = []
    (error,) = save(tmp_path, step=1, num_ranks=1, seed=1, at_point=lambda point, _step: seen.append(point))
    assert error == tmp_path / "step-00000001"
    assert seen == [point for point in POINTS if point not in ("save_begun", "before_prune", "after_prune")]


@pytest.mark.parametrize("num_failing", [1, 2])
def test_ranks_that_cannot_write_fail_the_save_on_every_rank_with_their_words(num_failing: int, tmp_path: Path) -> None:
    """A failing rank's file name is taken by a folder, which even root cannot write to."""
    old = saved(tmp_path, step=1)

    class Blocking(SimulatedRanks):
        def agree(self, ok: bool) -> bool:
            outcome = super().agree(ok)
            if self.rank < num_failing and work.is_dir():
                (work / f"rank-{self.rank:05d}.safetensors").mkdir(exist_ok=True)
            return outcome

    work = order(tmp_path, step=2, num_ranks=2).work

    def save_on(ranks: SimulatedRanks) -> Path:
        snapshot = Snapshot(fragments_of(ranks.rank, 2, 1))
        blocking = Blocking(ranks.rank, ranks._meeting)
        return write_checkpoint(order(tmp_path, step=2, num_ranks=2), snapshot, blocking)

    errors = on_ranks(2, save_on)
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    for error in errors:
        assert all(f"rank {rank}: FileExistsError" in str(error) for rank in range(num_failing))
        assert "earlier checkpoints are whole" in str(error)
    assert list(tmp_path.iterdir()) == [old]
    verify(old)


def test_ranks_that_together_miss_a_range_cannot_commit(tmp_path: Path) -> None:
    def save_without_a_fragment(ranks: SimulatedRanks) -> Path:
        fragments = fragments_of(ranks.rank, 2, 1)
        snapshot = Snapshot(fragments[:-1] if ranks.rank == 1 else fragments)
        return write_checkpoint(order(tmp_path, step=1, num_ranks=2), snapshot, ranks)

    errors = on_ranks(2, save_without_a_fragment)
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    assert "norm.weight" in str(errors[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", [1, 2])
def test_a_start_that_was_replaced_commits_nothing(moment: int, tmp_path: Path) -> None:
    """The lease is looked at after the work directory was made, and before the rename."""
    calls: list[int] = []

    def check_lease() -> None:
        calls.append(1)
        if len(calls) == moment:
            raise RunInUse("replaced by start 2")

    first, second = save(tmp_path, step=1, num_ranks=2, seed=1, check_lease=check_lease)
    assert (type(first), type(second)) == (RunInUse, SaveFailed)
    assert "replaced by start 2" in str(second)
    assert list(tmp_path.iterdir()) == []


def test_what_must_not_be_older_than_a_checkpoint_is_asked_for_once_right_before_it_counts(tmp_path: Path) -> None:
    there: list[list[str]] = []
    save(
        tmp_path,
        step=1,
        num_ranks=2,
        seed=1,
        before_commit=lambda: there.append([path.name for path in tmp_path.iterdir()]),
    )
    assert there == [["step-00000001.attempt-1.tmp"]]


def test_a_step_is_committed_once(tmp_path: Path) -> None:
    first = saved(tmp_path, seed=1)
    errors = save(tmp_path, step=1, num_ranks=2, seed=2)
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    assert list(tmp_path.iterdir()) == [first]
    verify(first)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("training.checkpoint.commit._MANIFEST_BYTES_PER_RANK", 2**60)
    errors: list[Any] = save(tmp_path, step=1, num_ranks=2, seed=1, at_point=lambda point, _step: seen.append(point))
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    assert "bytes free, the checkpoint takes 2,305," in str(errors[1])
    assert "file_written" not in seen
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.unit.checkpoint.simulated_ranks import save, saved
from training.checkpoint.catalog import committed, verify

directory = Path(sys.argv[1])
old = saved(directory, step=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))  # no file may grow beyond: EFBIG
errors = save(directory, step=2, num_ranks=2, seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([type(error).__name__ for error in errors], str(errors[0]))
assert committed(directory) == [old], committed(directory)
verify(old)
saved(directory, step=2)
"""


def test_a_file_that_cannot_grow_fails_the_save_with_words_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert result.returncode == 0, result.stderr
    assert "['SaveFailed', 'SaveFailed']" in result.stdout
    assert "File too large" in result.stdout
    assert "earlier checkpoints are whole" in result.stdout


def test_a_file_in_the_way_of_the_folder_is_a_failed_save(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    errors = save(tmp_path / "checkpoints", step=1, num_ranks=2, seed=1)
    assert [type(error) for error in errors] == [SaveFailed, SaveFailed]
    assert committed(tmp_path) == []

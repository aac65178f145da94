import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.simulated_ranks import (
    KINDS,
    SHAPES,
    fragments_of,
    on_ranks,
    progress_at,
    save,
    saved,
)
from training.checkpoint.store import (
    CheckpointReader,
    Fragment,
    committed,
    load_fragments,
    newest_whole,
    prune,
    save_checkpoint,
    verify,
)
from training.errors import CorruptCheckpoint, StorageError


def alone(ok: bool) -> bool:
    """`agree` of a job of one rank."""
    return ok


def whole_tensors(seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{fragment.parameter}": values
        for fragment in fragments_of(0, 1, seed)
        for kind, values in fragment.tensors.items()
    }


@pytest.mark.parametrize("num_writers", [1, 2, 5])
@pytest.mark.parametrize("num_readers", [1, 3, 4])
def test_what_any_number_of_ranks_wrote_any_other_number_reads(
    num_writers: int, num_readers: int, tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path, step=8, num_ranks=num_writers, seed=3)
    for rank in range(num_readers):
        fragments = fragments_of(rank, num_readers, None)
        assert load_fragments(checkpoint, fragments) == progress_at(8)
        for fragment, expected in zip(fragments, fragments_of(rank, num_readers, 3), strict=True):
            assert all(torch.equal(fragment.tensors[kind], expected.tensors[kind]) for kind in KINDS)


@given(data=st.data())
def test_any_range_of_any_tensor_can_be_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = tmp_path_factory.getbasetemp() / "ranges" / "step-00000001"
    if not checkpoint.exists():
        saved(checkpoint.parent, num_ranks=3)
    name, values = data.draw(st.sampled_from(list(whole_tensors(1).items())))
    start = data.draw(st.integers(0, len(values) - 1))
    numel = data.draw(st.integers(1, len(values) - start))
    assert torch.equal(CheckpointReader(checkpoint).read(name, start, numel), values[start : start + numel])


def test_a_commit_leaves_the_manifest_and_one_file_per_rank(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, num_ranks=2)
    assert {path.name for path in checkpoint.iterdir()} == {
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    }
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_the_torso_of_a_killed_save_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    torso = tmp_path / "step-00000009.tmp"
    torso.mkdir()
    (torso / "rank-00007.json").write_text("{}")
    first = saved(tmp_path, step=4)
    assert committed(tmp_path) == [first]
    second = saved(tmp_path, step=9)
    assert not torso.exists()
    assert not (second / "rank-00007.json").exists()
    assert committed(tmp_path) == [second, first]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": lambda checkpoint: flip(checkpoint / "rank-00001.safetensors"),
    "truncated": lambda checkpoint: (checkpoint / "rank-00001.safetensors").write_bytes(b"short"),
    "empty": lambda checkpoint: (checkpoint / "rank-00000.safetensors").write_bytes(b""),
    "missing file": lambda checkpoint: (checkpoint / "rank-00000.safetensors").unlink(),
    "missing manifest": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "torn manifest": lambda checkpoint: (checkpoint / "manifest.json").write_text('{"format_version": 1'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(damage: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    verify(checkpoint)
    DAMAGE[damage](checkpoint)
    with pytest.raises(CorruptCheckpoint, match=str(checkpoint)):
        verify(checkpoint)


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_rank_falls_back_to_the_newest_whole_checkpoint(damage: str, tmp_path: Path) -> None:
    older, old, new = (saved(tmp_path, step=step) for step in (2, 4, 6))
    DAMAGE[damage](new)
    found = on_ranks(2, lambda rank, agree: newest_whole(tmp_path, rank=rank, world_size=2, agree=agree))
    assert [path for path, _ in found] == [old, old]
    assert all(len(rejected) == 1 for _, rejected in found)
    assert any(str(new) in rejected[0] for _, rejected in found)
    assert committed(tmp_path) == [old, older]
    assert (tmp_path / "step-00000006.damaged").is_dir()
    assert saved(tmp_path, step=6) == new  # the step can be committed again


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "not there"):
        assert newest_whole(directory, rank=0, world_size=1, agree=alone) == (None, [])


def test_checkpoints_of_which_none_is_whole_stop_every_rank(tmp_path: Path) -> None:
    for step in (1, 2):
        DAMAGE["one bit"](saved(tmp_path, step=step))
    errors = on_ranks(2, lambda rank, agree: newest_whole(tmp_path, rank=rank, world_size=2, agree=agree))
    assert [type(error) for error in errors] == [CorruptCheckpoint, CorruptCheckpoint]
    assert "none of the 2 checkpoints" in str(errors[0])


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    ours = fragments_of(0, 1, None)
    strange = Fragment(
        parameter="other.weight", shape=(2,), start=0, tensors={k: torch.zeros(2) for k in KINDS}, is_owner=True
    )
    with pytest.raises(CorruptCheckpoint, match=r"holds no weight/other\.weight"):
        load_fragments(checkpoint, [*ours, strange])
    wider = Fragment(
        parameter="norm.weight", shape=(8,), start=0, tensors={k: torch.zeros(8) for k in KINDS}, is_owner=True
    )
    with pytest.raises(CorruptCheckpoint, match=r"weight/norm.weight has shape \(6,\), the model's is \(8,\)"):
        load_fragments(checkpoint, [*ours[:-1], wider])
    assert all(not values.any() for fragment in ours for values in fragment.tensors.values())


def test_ranks_that_together_miss_a_range_cannot_commit(tmp_path: Path) -> None:
    def save_without_a_fragment(rank: int, agree) -> Path:
        fragments = fragments_of(rank, 2, 1)
        return save_checkpoint(
            tmp_path,
            progress=progress_at(1),
            layout="",
            fragments=fragments[:-1] if rank == 1 else fragments,
            rank=rank,
            world_size=2,
            agree=agree,
        )

    errors = on_ranks(2, save_without_a_fragment)
    assert [type(error) for error in errors] == [StorageError, StorageError]
    assert "norm.weight" in str(errors[0])
    assert list(tmp_path.iterdir()) == []


def test_one_rank_that_cannot_write_fails_the_save_on_every_rank_and_harms_nothing(tmp_path: Path) -> None:
    """Rank 1's file name is taken by a folder, which even root cannot write to."""
    old = saved(tmp_path, step=1)

    def save_on(rank: int, agree) -> Path:
        def block_then_agree(ok: bool) -> bool:
            (tmp_path / "step-00000002.tmp" / "rank-00001.safetensors").mkdir(parents=True, exist_ok=True)
            return agree(ok)

        return save_checkpoint(
            tmp_path,
            progress=progress_at(2),
            layout="",
            fragments=fragments_of(rank, 2, 1),
            rank=rank,
            world_size=2,
            agree=block_then_agree if rank == 1 else agree,
        )

    errors = on_ranks(2, save_on)
    assert [type(error) for error in errors] == [StorageError, StorageError]
    assert "another rank failed" in str(errors[0])
    assert committed(tmp_path) == [old]
    verify(old)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.unit.checkpoint.simulated_ranks import save, saved
from training.checkpoint.store import committed, verify

directory = Path(sys.argv[1])
old = saved(directory, step=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))  # no file may grow beyond: EFBIG
errors = save(directory, step=2, num_ranks=2, seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print([type(error).__name__ for error in errors], str(errors[0]).splitlines()[-1])
assert committed(directory) == [old], committed(directory)
verify(old)
saved(directory, step=2)
"""


def test_a_full_disk_fails_the_save_with_words_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
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
    assert "['StorageError', 'StorageError']" in result.stdout
    assert "earlier checkpoints are whole" in result.stdout


def test_a_file_in_the_way_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    errors = save(tmp_path / "checkpoints", step=1, num_ranks=2, seed=1)
    assert [type(error) for error in errors] == [StorageError, StorageError]


@given(
    steps=st.sets(st.integers(1, 30), min_size=1, max_size=8),
    keep_last=st.integers(1, 4),
    keep_steps=st.frozensets(st.integers(1, 30), max_size=4),
)
def test_prune_keeps_the_newest_and_the_named(
    steps: set[int], keep_last: int, keep_steps: frozenset[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("prune")
    for step in steps:
        (directory / f"step-{step:08d}").mkdir()
    (directory / "step-00000003.damaged").mkdir()
    prune(directory, keep_last=keep_last, keep_steps=keep_steps)
    kept = set(sorted(steps)[-keep_last:]) | (steps & keep_steps)
    assert {path.name for path in directory.iterdir()} == {f"step-{step:08d}" for step in kept} | {
        "step-00000003.damaged"
    }


def test_every_parameter_of_these_tests_is_cut_somewhere() -> None:
    sizes = [len(fragment.tensors["weight"]) for fragment in fragments_of(0, 2, 1)]
    assert len(SHAPES) == len(sizes)
    assert all(0 < size < len(whole_tensors(1)[f"weight/{name}"]) for size, name in zip(sizes, SHAPES, strict=True))

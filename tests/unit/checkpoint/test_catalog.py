import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.simulated_ranks import ALONE, on_ranks, saved
from training.checkpoint.catalog import (
    Folders,
    committed,
    newest_whole,
    prune,
    remove_after,
    remove_torsos,
    set_aside_after,
    step_of,
    verify,
)
from training.errors import CorruptCheckpoint, StorageError


def test_the_torso_of_a_killed_save_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    first = saved(tmp_path, step=4)
    torso = tmp_path / "step-00000009.attempt-3.tmp"
    half_removed = tmp_path / "step-00000002.old"
    for folder in (torso, half_removed):
        folder.mkdir()
        (folder / "rank-00007.json").write_text("{}")
    assert committed(tmp_path) == [first]
    remove_torsos(Folders(permanent=tmp_path))
    assert list(tmp_path.iterdir()) == [first]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lie(checkpoint: Path) -> None:
    """Valid JSON that says something else."""
    path = checkpoint / "manifest.json"
    text = path.read_text()
    assert '"tokens": ' in text
    path.write_text(text.replace('"tokens": ', '"tokens": 1'))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": lambda checkpoint: flip(checkpoint / "rank-00001.safetensors"),
    "truncated": lambda checkpoint: (checkpoint / "rank-00001.safetensors").write_bytes(b"short"),
    "empty": lambda checkpoint: (checkpoint / "rank-00000.safetensors").write_bytes(b""),
    "missing file": lambda checkpoint: (checkpoint / "rank-00000.safetensors").unlink(),
    "missing manifest": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "torn manifest": lambda checkpoint: (checkpoint / "manifest.json").write_text('{"format_version": 2'),
    "a digit of the manifest": lie,
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
    found = on_ranks(2, lambda ranks: newest_whole([tmp_path], ranks))
    assert [path for path, _ in found] == [old, old]
    assert found[0][1] == found[1][1], "every rank knows why"
    assert str(new) in found[0][1][0]
    assert committed(tmp_path) == [old, older]
    assert (tmp_path / "step-00000006.damaged").is_dir()
    assert saved(tmp_path, step=6) == new  # the step can be committed again


def test_a_checkpoint_under_another_ones_name_is_found(tmp_path: Path) -> None:
    saved(tmp_path, step=4).rename(tmp_path / "step-00000009")
    with pytest.raises(CorruptCheckpoint, match="that of step 4"):
        verify(tmp_path / "step-00000009")


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    file = checkpoint / "rank-00000.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptCheckpoint, match="no plain file"):
        verify(checkpoint)


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "not there"):
        assert newest_whole([directory], ALONE) == (None, [])


def test_checkpoints_of_which_none_is_whole_stop_every_rank(tmp_path: Path) -> None:
    for step in (1, 2):
        DAMAGE["one bit"](saved(tmp_path, step=step))
    errors = on_ranks(2, lambda ranks: newest_whole([tmp_path], ranks))
    assert [type(error) for error in errors] == [CorruptCheckpoint, CorruptCheckpoint]
    assert "none of the 2 checkpoints" in str(errors[0])


def test_the_newest_of_two_folders_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    permanent, fast = tmp_path / "permanent", tmp_path / "fast"
    kept, frequent = saved(permanent, step=4), saved(fast, step=6)
    assert newest_whole([permanent, fast], ALONE) == (frequent, [])
    later = saved(permanent, step=8)
    assert newest_whole([permanent, fast], ALONE) == (later, [])
    assert committed(permanent, fast) == [later, frequent, kept]


def test_fast_storage_that_is_gone_or_forgotten_is_noticed(tmp_path: Path) -> None:
    permanent, fast = tmp_path / "permanent", tmp_path / "nvme" / "run"
    folders = Folders(permanent=permanent, fast=fast)
    folders.open()
    saved(fast, step=6)
    folders.check_fast_storage()
    with pytest.raises(CorruptCheckpoint, match="is not searched now"):
        Folders(permanent=permanent).check_fast_storage()
    fast.rename(tmp_path / "away")
    with pytest.raises(CorruptCheckpoint, match="is not there"):
        folders.check_fast_storage()


def test_a_fast_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"checkpoint\.fast_root"):
        Folders(permanent=tmp_path, fast=tmp_path / "file" / "run").open()


def test_the_frequent_ones_go_to_fast_storage_and_those_kept_for_good_do_not(tmp_path: Path) -> None:
    folders = Folders(permanent=tmp_path / "p", fast=tmp_path / "f")
    assert folders.of(4, {8}) == tmp_path / "f"
    assert folders.of(8, {8}) == tmp_path / "p"
    assert Folders(permanent=tmp_path / "p").of(4, {8}) == tmp_path / "p"


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
    (directory / "step-00000002.old").mkdir()  # storage went away in the middle of an earlier removal
    prune([directory], keep_last=keep_last, keep_steps=keep_steps)
    kept = set(sorted(steps)[-keep_last:]) | (steps & keep_steps)
    assert {path.name for path in directory.iterdir()} == {f"step-{step:08d}" for step in kept} | {
        "step-00000003.damaged"
    }


def test_what_was_saved_after_a_step_is_removed_from_all_folders(tmp_path: Path) -> None:
    permanent, fast = tmp_path / "permanent", tmp_path / "fast"
    early, permanent_later = saved(permanent, step=4), saved(permanent, step=8)
    frequent, frequent_later = saved(fast, step=6), saved(fast, step=10)
    assert remove_after([permanent, fast], 7) == [frequent_later, permanent_later], "newest first"
    assert committed(permanent, fast) == [frequent, early]
    assert remove_after([permanent, fast], 7) == []


def test_the_newest_of_what_is_rolled_back_is_kept_under_another_name(tmp_path: Path) -> None:
    permanent, fast = tmp_path / "permanent", tmp_path / "fast"
    early, end = saved(permanent, step=4), saved(permanent, step=8)
    between = saved(fast, step=6)
    aside = set_aside_after([permanent, fast], 4, ".rolled-back-1")
    assert aside is not None
    assert aside == end.with_suffix(".rolled-back-1")
    assert committed(permanent, fast) == [early]
    assert not between.exists()
    aside.rename(end)
    verify(end)
    assert set_aside_after([permanent, fast], 8, ".rolled-back-2") is None


def test_whoever_is_killed_between_finds_the_newest_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, step=4)
    saved(tmp_path, step=6)
    end = saved(tmp_path, step=8)
    rename = os.rename

    def dies(source: Path, target: Path) -> None:
        if str(target).endswith("rolled-back-1"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        set_aside_after([tmp_path], 4, ".rolled-back-1")
    assert [step_of(path) for path in committed(tmp_path)] == [8, 4]
    verify(end)
    monkeypatch.undo()
    assert set_aside_after([tmp_path], 4, ".rolled-back-1") is not None


def test_the_manifest_is_json_that_other_programs_can_read(tmp_path: Path) -> None:
    content = json.loads((saved(tmp_path) / "manifest.json").read_text())
    assert {tensor["name"] for tensor in content["tensors"]} >= {"weight/norm.weight", "exp_avg_sq/block.weight"}
    assert content["progress"]["samples"] == 4

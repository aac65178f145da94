import os
from pathlib import Path

import pytest

from training.fault_tolerance.jit_locks import clear_locks, use_private_extensions


def test_locks_that_a_killed_start_left_are_removed_and_nothing_else(tmp_path: Path) -> None:
    assert clear_locks(tmp_path) == []
    op = tmp_path / "torch_extensions/py311_cpu/some_op"
    op.mkdir(parents=True)
    (op / "lock").touch()
    (op / "some_op.so").touch()
    assert clear_locks(tmp_path) == [op / "lock"]
    assert [path.name for path in op.iterdir()] == ["some_op.so"]


def test_extensions_are_built_in_the_run_directory_unless_the_environment_names_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    use_private_extensions(tmp_path)
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")
    use_private_extensions(tmp_path / "other")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")

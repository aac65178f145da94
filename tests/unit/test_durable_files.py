from pathlib import Path

import pytest

from training.durable_files import write_durably
from training.errors import StorageError


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_durably(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_durably(path, "half of it \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_durably(tmp_path / "file" / "config.yaml", "new")

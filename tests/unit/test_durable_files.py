import os
import stat
from pathlib import Path

import pytest

from training.durable_files import refuse_world_writable, write_durably
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


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_file_follows_from_the_umask(umask: int, expected: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_durably(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


@pytest.mark.parametrize(("umask", "expected"), [(0o000, 0o002), (0o022, 0o022), (0o077, 0o077)])
def test_no_umask_lets_everyone_write(umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        refuse_world_writable()
        assert os.umask(before) == expected
    finally:
        os.umask(before)


def test_a_link_in_a_file_s_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to("target")
    write_durably(tmp_path / "link", "ours")
    assert (tmp_path / "target").read_text() == "theirs"
    assert not (tmp_path / "link").is_symlink()

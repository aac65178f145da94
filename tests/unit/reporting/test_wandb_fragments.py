"""Where offline fragments end, whole or cut anywhere; the files are wandb's own."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from training.reporting.wandb_fragments import mend, next_line, retire

PROGRAM = """
import sys, wandb
settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
run = wandb.init(id="demo-1", project="p", mode="offline", dir=sys.argv[1], settings=settings)
for step in range(10, 200):
    run.log({"text": "x" * (40_000 if step % 50 == 0 else 10 * step)}, step=step, commit=True)
run.finish()
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fragments")
    subprocess.run([sys.executable, "-c", PROGRAM, folder], check=True, timeout=100)
    (path,) = folder.glob("wandb/offline-run-*/run-demo-1.wandb")
    return path


def place(written: Path, run_directory: Path, *, name: str = "offline-run-20260101_000000-demo-1") -> Path:
    path = run_directory / "wandb" / name / written.name
    path.parent.mkdir(parents=True)
    shutil.copy(written, path)
    return path


def rows(path: Path) -> int:
    program = str(Path(sys.executable).with_name("wandb"))
    done = subprocess.run([program, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True)
    assert "incomplete" not in done.stderr
    return done.stdout.count('"type":"history"')


def test_the_last_row_of_a_whole_fragment_is_found(written: Path, tmp_path: Path):
    assert next_line(tmp_path) == 0
    path = place(written, tmp_path)
    assert next_line(tmp_path) == 200
    size = path.stat().st_size
    assert size > 4 * 2**15
    mend(tmp_path)
    assert path.stat().st_size == size
    assert rows(path) == 190


def test_a_cut_anywhere_costs_the_rows_after_it_and_leaves_a_whole_file(written: Path, tmp_path: Path):
    content, seen = written.read_bytes(), set()
    cuts = [0, 3, 7, 2**15, 2**15 + 3, 2 * 2**15 - 1, len(content) - 1]
    cuts += random.Random(0).sample(range(8, len(content)), 60)
    path = place(written, tmp_path)
    for cut in cuts:
        path.write_bytes(content[:cut])
        line = next_line(tmp_path)
        mend(tmp_path)
        assert next_line(tmp_path) == line
        assert cut - path.stat().st_size < 100_000
        seen.add(line)
    assert {0, 200} <= seen
    assert len(seen) > 20
    path.write_bytes(content[: len(content) // 2])
    line = next_line(tmp_path)
    mend(tmp_path)
    assert rows(path) == line - 10


def test_only_the_end_of_a_long_fragment_is_read(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = place(written, tmp_path)
    monkeypatch.setattr("training.reporting.wandb_fragments._LAST_BLOCKS", 1)
    content = bytearray(path.read_bytes())
    content[7:2000] = b"\xff" * 1993  # nobody looks there
    path.write_bytes(content)
    assert next_line(tmp_path) == 200
    mend(tmp_path)
    assert path.stat().st_size == len(content)


def test_the_furthest_fragment_counts_and_fragments_of_online_starts_do_too(written: Path, tmp_path: Path):
    place(written, tmp_path, name="run-20260101_000000-demo-1")
    path = place(written, tmp_path)
    os.truncate(path, 7)
    assert next_line(tmp_path) == 200


def left_out_by_sync(run_directory: Path) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", *run_directory.glob("wandb/off*")]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=run_directory).stderr


def test_a_fragment_without_a_row_is_none_to_wandb_sync(written: Path, tmp_path: Path):
    place(written, tmp_path)
    empty = place(written, tmp_path, name="offline-run-20260101_000001-demo-1")
    os.truncate(empty, 0)
    assert "Skipped" not in left_out_by_sync(tmp_path)
    mend(tmp_path)
    assert "Skipped 1 synced run(s)" in left_out_by_sync(tmp_path)
    assert "Would sync 1 run(s)" in left_out_by_sync(tmp_path)


def test_retired_fragments_are_what_wandb_sync_leaves_out(written: Path, tmp_path: Path):
    place(written, tmp_path)
    retire(tmp_path)
    assert "Skipped 1 synced run(s)" in left_out_by_sync(tmp_path)

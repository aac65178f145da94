import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from training import lease
from training.checkpoint.catalog import Folders, remove_torsos
from training.errors import RunInUse
from training.lease import Holder, Lease, holder_of

HOLD = """
import sys, time
from pathlib import Path
from training.lease import Lease
print(Lease.take(Path(sys.argv[1])).number, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A real process that holds the lease of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_job_is_refused_and_told_by_whom(holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(RunInUse, match=f"in use by process {holder.pid} on "):
        Lease.take(tmp_path, patience_seconds=0.3)
    found = holder_of(tmp_path)
    assert found is not None
    assert found.pid == holder.pid
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["000001.json"]


def test_a_killed_jobs_run_is_free_at_once(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    assert Lease.take(tmp_path, patience_seconds=5).number == 2  # not even reaped yet
    assert holder_of(tmp_path).pid == os.getpid()  # type: ignore[union-attr]


def test_a_released_run_is_free(tmp_path: Path) -> None:
    first = Lease.take(tmp_path)
    first.check()
    first.release()
    assert holder_of(tmp_path) is None
    assert Lease.take(tmp_path, patience_seconds=0).number == 2


def test_of_many_that_ask_at_the_same_moment_one_gets_it(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def take(_: int) -> bool:
        together.wait()
        try:
            Lease.take(tmp_path, patience_seconds=0.2)
        except RunInUse:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["000001.json"]


def taken_over(tmp_path: Path) -> tuple[Lease, Lease]:
    """Two starts of one run: Slurm started the job again, and the old process wakes up late."""
    old = Lease.take(tmp_path)
    path = tmp_path / "leases" / "000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start_time": "long gone"}))
    return old, Lease.take(tmp_path)


def test_a_zombie_is_told_that_it_was_replaced(tmp_path: Path) -> None:
    old, new = taken_over(tmp_path)
    new.check()
    with pytest.raises(RunInUse, match=r"start 1 of .* was replaced by start 2"):
        old.check()
    old.release()  # changes nothing
    new.check()


@pytest.mark.parametrize("zombie_makes_its_directory", ["before", "after"])
def test_whatever_the_order_a_zombie_commits_nothing(zombie_makes_its_directory: str, tmp_path: Path) -> None:
    """Either it sees the new lease after it made its work directory, or its work directory is removed."""
    folders = Folders(permanent=tmp_path / "checkpoints")
    work = folders.permanent / "step-00000001.attempt-1.tmp"
    if zombie_makes_its_directory == "before":
        work.mkdir(parents=True)
        old, _ = taken_over(tmp_path)
        remove_torsos(folders)
        assert not work.exists()
    else:
        old, _ = taken_over(tmp_path)
        remove_torsos(folders)
        work.mkdir(parents=True)
        with pytest.raises(RunInUse):
            old.check()


def elsewhere(**changes: object) -> Holder:
    me = Holder(
        number=1,
        host="node-7",
        machine="another boot",
        pid=1,
        start_time="1",
        slurm_job="",
        slurm_restart_count=0,
        released=False,
    )
    return replace(me, **changes)


def write(tmp_path: Path, holder: Holder) -> Path:
    path = tmp_path / "leases" / "000001.json"
    path.parent.mkdir()
    path.write_text(json.dumps(asdict(holder)))
    return path


def test_a_silent_holder_on_another_machine_is_replaced_and_a_beating_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SILENT_SECONDS", 1.0)
    path = write(tmp_path, elsewhere())
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(RunInUse, match="node-7"):
        Lease.take(tmp_path, patience_seconds=0.5)
    ended.set()
    heart.join()
    assert Lease.take(tmp_path, patience_seconds=0.5).number == 2


def test_a_requeued_slurm_job_does_not_wait_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, elsewhere(slurm_job="42"))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert Lease.take(tmp_path, patience_seconds=0).number == 2


def test_a_torn_lease_does_not_block_the_run(tmp_path: Path) -> None:
    write(tmp_path, elsewhere()).write_text("{")
    assert Lease.take(tmp_path, patience_seconds=0).number == 2

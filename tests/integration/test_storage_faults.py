"""Storage that is full, gone, or another job's: the run says so, loses nothing and ends with the same bits."""

import shutil
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.drills.tracing import strace_works
from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import Job, only_run, run_directories, run_to_end, submit, submit_to_end
from training.errors import ExitCode

ROOM_FOR_ONE = "size=3m"
"""A checkpoint of the smoke run takes 2.2 MB."""
LONGEST_WAIT_SECONDS = 1.0
"""From the issue: training does not wait longer for anything that reports or saves."""
REMOUNT = "mount -o remount,size=1m"


def assert_same_run(run: Path, reference: Reference) -> None:
    assert ledger(run)["state"] == "done"
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(reference.directory))


def test_a_full_disk_costs_checkpoints_but_not_the_run(reference: Reference, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    fast.mkdir()
    root = tmp_path / "runs"
    overrides = [*reference.overrides, f"run.root={root}", f"checkpoint.fast_root={fast}", "checkpoint.every_steps=2"]
    in_own_mounts = f'mount -t tmpfs -o {ROOM_FOR_ONE} tmpfs {fast} && exec {sys.executable} -m launch.submit "$@"'
    finished = run_to_end(["unshare", "-rm", "sh", "-c", in_own_mounts, "sh", *overrides], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    failed = [record for record in records(run, "incident") if record["what"] == "save_failed"]
    assert failed, "the disk was never full"
    assert all("bytes free, the checkpoint takes" in record["message"] for record in failed)
    saved = [record["directory"] for record in records(run, "checkpoint")]
    assert saved[0] == f"{fast}/{run.name}/step-00000002"
    assert {"checkpoints/step-00000009", "checkpoints/step-00000015"} <= set(saved)
    assert_same_run(run, reference)


def test_storage_that_goes_and_comes_back_is_used_again(reference: Reference, tmp_path: Path) -> None:
    fast, away, root = tmp_path / "fast", tmp_path / "away", tmp_path / "runs"
    more = ["checkpoint.every_steps=1", f"checkpoint.fast_root={fast}", "checkpoint.max_failed_saves=1000"]
    with submit([*reference.overrides, f"run.root={root}", *more], folder=tmp_path) as job:
        job.wait_until(lambda: any(records(run, "checkpoint") for run in run_directories(root)))
        fast.rename(away)
        fast.write_text("something else lies there")
        job.wait_until(lambda: any(incidents(run, "save_failed") for run in run_directories(root)))
        fast.unlink()
        away.rename(fast)
        assert job.wait().exit_code == 0
    run = only_run(root)
    first_failure = incidents(run, "save_failed")[0]["step"]
    later = [record["step"] for record in records(run, "checkpoint") if record["step"] > first_failure]
    assert later, "nothing was saved any more"
    assert_same_run(run, reference)


def test_storage_that_stays_away_ends_the_run_with_its_own_code(reference: Reference, tmp_path: Path) -> None:
    root, fast = tmp_path / "runs", tmp_path / "fast"
    more = ["checkpoint.every_steps=1", f"checkpoint.fast_root={fast}", "checkpoint.max_failed_saves=2"]
    command = [*reference.overrides, f"run.root={root}", *more]
    with submit(command, folder=tmp_path) as job:
        job.wait_until(lambda: any(records(run, "checkpoint") for run in run_directories(root)))
        shutil.move(fast, tmp_path / "away")
        fast.write_text("something else lies there")
        finished = job.wait()
    assert finished.exit_code == ExitCode.STORAGE, finished.explain()
    assert "could not be written to" in finished.stderr

    # The newest checkpoints are where nobody can see them: a start at step 0 would be a lie.
    again = submit_to_end([*command, "resume=auto"], folder=tmp_path)
    assert again.exit_code == ExitCode.CORRUPT_CHECKPOINT, again.explain()
    assert f"this run saved to {fast}" in again.stderr

    fast.unlink()
    shutil.move(tmp_path / "away", fast)
    finished = submit_to_end([*command, "resume=auto"], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    assert_same_run(only_run(root), reference)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_log_disk_that_is_full_holds_up_no_step(comes_back: bool, reference: Reference, tmp_path: Path) -> None:
    """metrics.jsonl lies on a disk of one page; a shell in the same mounts makes room later, or never."""
    root, disk = tmp_path / "runs", tmp_path / "disk"
    log = root / "chosen" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.touch()
    disk.mkdir()
    overrides = [*reference.overrides, f"run.root={root}", "run.id=chosen"]
    # The last checkpoint of the first training stage, which is always saved; the log was full some steps before.
    enlarge = f'(until [ -e "{root}/chosen/checkpoints/step-00000009" ]; do sleep 0.1; done; {REMOUNT} {disk}) &'
    in_own_mounts = (
        f"mount -t tmpfs -o size=4k tmpfs {disk} && touch {disk}/log && mount --bind {disk}/log {log} && "
        f'{{ {enlarge if comes_back else ":;"} }} && {sys.executable} -m launch.submit "$@"; '
        f"code=$?; cp {log} {tmp_path}/log; exit $code"
    )
    finished = run_to_end(["unshare", "-rm", "sh", "-c", in_own_mounts, "sh", *overrides], folder=tmp_path)
    assert "records wait in memory until it can be written again" in finished.stderr
    assert ledger(root / "chosen")["state"] == "done"  # all was trained, evaluated and gated
    assert contents(last_checkpoint(root / "chosen")) == contents(last_checkpoint(reference.directory))
    shutil.copy(tmp_path / "log", log)  # out of the mounts, which are gone
    steps = numbers_by_step(records(root / "chosen", "step"))
    if comes_back:
        assert finished.exit_code == 0, finished.explain()
        assert steps == numbers_by_step(records(reference.directory, "step"))
        (incident,) = incidents(root / "chosen", "log_unwritable")
        assert "No space left on device" in incident["message"]
    else:
        assert finished.exit_code == ExitCode.STORAGE, finished.explain()
        assert "records are lost" in finished.stderr
        assert steps.items() < numbers_by_step(records(reference.directory, "step")).items()


@pytest.mark.skipif(not strace_works(), reason="there is no strace, or it may not trace")
def test_a_slow_disk_holds_up_no_step(reference: Reference, tmp_path: Path) -> None:
    """Every fsync of every process takes 0.7 s longer, so a save takes many seconds and the next one comes due."""
    root = tmp_path / "runs"
    overrides = [*reference.overrides, f"run.root={root}", "checkpoint.every_steps=2"]
    slow = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fsync"]
    command = [*slow, "-e", "inject=fsync:delay_enter=700000", sys.executable, "-m", "launch.submit", *overrides]
    finished = run_to_end(command, folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    assert min(record["seconds"] for record in records(run, "checkpoint")) > 2, "the disk was not slow"
    assert incidents(run, "save_late"), "no save was due while another one went on"
    steps = records(run, "step")
    waits = [
        later["time"] - earlier["time"] - later["seconds"]
        for earlier, later in pairwise(steps)
        if earlier["stage"] == later["stage"]
    ]
    print(f"longest wait between two steps: {max(waits):.3f} s of {len(waits)}")
    assert max(waits) < LONGEST_WAIT_SECONDS
    assert_same_run(run, reference)


def incidents(run: Path, what: str) -> list[dict]:
    return [record for record in records(run, "incident") if record["what"] == what]


@pytest.mark.parametrize("second", ["launch.submit", "training.train"])
def test_a_second_job_on_the_run_is_refused_and_the_first_does_not_feel_it(
    second: str, reference: Reference, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    command = [*reference.overrides, f"run.root={root}", "run.id=shared", "resume=auto"]
    with submit(command, folder=tmp_path) as job:
        job.wait_until(lambda: bool(records(root / "shared", "step")))
        pause(job, True)  # long enough at work for the second one to meet it
        if second == "launch.submit":
            refused = submit_to_end(command, folder=tmp_path)
        else:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            arguments = ["-m", "training.train", str(root / "shared"), "resume=auto"]
            refused = run_to_end([*torchrun, *arguments], folder=tmp_path)
        pause(job, False)
        assert job.wait().exit_code == 0
    if second == "launch.submit":
        assert refused.exit_code == ExitCode.RUN_IN_USE, refused.explain()
    else:
        assert refused.exit_code != 0  # torchrun has a code of its own
    assert "is in use by process" in refused.stderr
    assert "start 1 of the run" in refused.stderr
    assert {record["attempt"] for record in records(root / "shared", "step")} == {0}
    assert_same_run(root / "shared", reference)


def pause(job: Job, stop: bool) -> None:
    for process in job.ranks().values():
        process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

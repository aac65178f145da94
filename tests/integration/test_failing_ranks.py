"""A rank that fails ends the whole job soon, non-zero, with its own reason as the last words, and leaves no process."""

import signal
from pathlib import Path

from tests.integration.reading import ledger, records
from tests.integration.running import Job, only_run, run_directories, submit, submit_to_end
from tests.integration.test_launchers import SHORT
from training.errors import ExitCode

SOON_SECONDS = 30


def last_words(stderr: str) -> str:
    """What stands after the line that introduces the first failing rank."""
    return stderr.rpartition("first failing rank: ")[2]


def test_data_that_cannot_be_prepared_is_the_last_thing_said(tmp_path: Path) -> None:
    not_a_folder = tmp_path / "a_file"
    not_a_folder.write_text("")
    overrides = [*SHORT, f"run.root={tmp_path / 'runs'}", f"data.prepared_root={not_a_folder}"]
    finished = submit_to_end(overrides, folder=tmp_path)
    assert finished.exit_code in (ExitCode.STORAGE, ExitCode.DATA), finished.explain()
    assert str(not_a_folder) in last_words(finished.stderr)
    assert "Traceback" not in finished.stderr


def test_a_source_that_is_missing_is_named_on_the_last_lines(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    source = f"data.sources.kjv={{kind: text_files, path: {missing}}}"
    overrides = [*SHORT, source, f"run.root={tmp_path / 'runs'}", f"data.prepared_root={tmp_path / 'prepared'}"]
    finished = submit_to_end(overrides, folder=tmp_path)
    assert finished.exit_code in (ExitCode.DATA, ExitCode.BAD_CONFIG), finished.explain()
    assert str(missing) in "\n".join(finished.stderr.splitlines()[-6:])


def test_one_rank_that_raises_ends_the_job_and_says_why(tmp_path: Path, prepared_root: Path) -> None:
    root = tmp_path / "runs"
    (root / "chosen" / "logs" / "rank-00001.log").mkdir(parents=True)  # where rank 1 wants to write its log
    overrides = [*SHORT, f"run.root={root}", "run.id=chosen", f"data.prepared_root={prepared_root}"]
    with submit(overrides, folder=tmp_path) as job:
        error_file = root / "chosen/logs/rank-00001.error"
        job.wait_until(error_file.exists)
        finished = job.wait(limit_seconds=SOON_SECONDS)
        assert job.survivors(within_seconds=SOON_SECONDS) == []
    assert finished.exit_code == ExitCode.FAILED, finished.explain()
    assert last_words(finished.stderr).startswith("rank-00001")
    assert "IsADirectoryError" in finished.stderr.splitlines()[-1]


def test_one_rank_that_dies_of_a_signal_ends_the_job(tmp_path: Path, prepared_root: Path) -> None:
    root = tmp_path / "runs"
    overrides = [*SHORT, "stages.pretrain.tokens=51200", f"run.root={root}", f"data.prepared_root={prepared_root}"]
    with submit(overrides, folder=tmp_path) as job:
        job.wait_until(lambda: has_steps(root, 2))
        rank(job, 1).send_signal(signal.SIGABRT)
        finished = job.wait(limit_seconds=SOON_SECONDS)
        assert job.survivors(within_seconds=SOON_SECONDS) == []
    assert finished.exit_code in (ExitCode.FAILED, ExitCode.PEER_LOST), finished.explain()
    assert "ended with exit code" in finished.stderr
    assert ledger(only_run(root))["state"] != "done"


def has_steps(root: Path, number: int) -> bool:
    return any(len(records(run, "step")) >= number for run in run_directories(root))


def rank(job: Job, number: int):
    return job.ranks()[number]

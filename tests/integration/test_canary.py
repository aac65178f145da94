"""Secrets of the environment leave no trace in anything a run writes, prints or shows, whether it works or fails."""

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launch.submit import main
from tests.integration.running import Finished, Job, only_run, run_directories, submit, submit_to_end
from tests.integration.test_launchers import SHORT
from tests.slurm_cluster import jobs
from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.cluster import why_not as why_no_slurm
from tests.slurm_cluster.fake_ranks import end, fake_ranks, seen
from training.errors import ExitCode

CANARY = "CANARY9f3a1c77e0b2"
SECRETS = {
    "WANDB_API_KEY": (CANARY * 3)[:40],
    "HF_TOKEN": f"hf_{CANARY}",
    "AWS_SECRET_ACCESS_KEY": f"aws{CANARY}",
    "MY_TOKEN": CANARY,
    "DB_PASSWORD": f"pw{CANARY}",
    "WANDB_BASE_URL": f"http://user:{CANARY}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://user:{CANARY}@127.0.0.1:9",
    "HTTP_PROXY": f"http://user:{CANARY}@127.0.0.1:9",
}
UNREACHABLE = ["reporting.wandb.mode=online"]


class Watched:
    """What was seen of a job from outside."""

    def __init__(self) -> None:
        self.command_lines: set[str] = set()

    def until_the_end(self, job: Job) -> Finished:
        while living := job.processes():
            for process in living:
                try:
                    self.command_lines.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
            with contextlib.suppress(subprocess.TimeoutExpired):
                return job.wait(limit_seconds=0.5)
        return job.wait()


@pytest.fixture(scope="module")
def with_secrets() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_MODE", "online")
        yield


@pytest.fixture(scope="module")
def trained(with_secrets: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched, Finished]:
    """A run that works, with wandb offline."""
    folder = tmp_path_factory.mktemp("trained")
    os.environ["WANDB_MODE"] = "offline"
    watched = Watched()
    overrides = ["experiment=smoke", f"run.root={folder / 'runs'}", f"data.prepared_root={folder / 'prepared'}"]
    with submit([*overrides, "reporting.wandb.mode=offline"], folder=folder) as job:
        finished = watched.until_the_end(job)
    assert finished.exit_code == 0, finished.explain()
    os.environ["WANDB_MODE"] = "online"
    return folder, watched, finished


def files(folder: Path) -> list[Path]:
    """All files, also those that links lead to: wandb keeps one of its logs elsewhere."""
    return [path for path in folder.rglob("*") if path.is_file()]


def leaks(folder: Path) -> list[str]:
    """The files under a folder that hold the canary, in clear or with its characters doubled by UTF-16."""
    forms = (CANARY.encode(), CANARY.encode("utf-16-le"))
    return [str(path.relative_to(folder)) for path in files(folder) if any(f in path.read_bytes() for f in forms)]


def test_a_run_that_works_leaves_no_secret_anywhere(trained: tuple[Path, Watched, Finished]) -> None:
    folder, watched, finished = trained
    run = only_run(folder / "runs")
    names = {path.name for path in files(run)}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "report.html", "rank-00000.log"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert any(name.endswith(".safetensors") for name in names)
    assert leaks(folder) == []
    assert CANARY not in finished.stdout + finished.stderr
    assert any("training.train" in line for line in watched.command_lines)
    assert any("wandb_follower" in line for line in watched.command_lines)
    assert not [line for line in watched.command_lines if CANARY in line]


def test_nothing_in_a_run_directory_can_be_written_by_everyone(trained: tuple[Path, Watched, Finished]) -> None:
    folder, _, _ = trained
    writable = [path for path in folder.rglob("*") if path.lstat().st_mode & stat.S_IWOTH and not path.is_symlink()]
    assert writable == []


@pytest.mark.parametrize("launcher", ["local", "hostfile", "slurm"])
def test_a_dry_run_shows_none(
    launcher: str,
    with_secrets: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    (tmp_path / "pdsh").touch(mode=0o755)  # only looked for
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    more = {
        "hostfile": [f"cluster.hostfile.path={hosts}"],
        "slurm": ["cluster.num_nodes=2", "cluster.slurm.spare_nodes=1"],
    }.get(launcher, [])
    overrides = ["experiment=smoke", f"cluster={launcher}", f"run.root={tmp_path / 'runs'}", *more]
    assert main([*overrides, "cluster.dry_run=true"]) == 0
    printed = capsys.readouterr()
    assert "PYTHONSAFEPATH=1" in printed.out
    assert CANARY not in printed.out + printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm()))
def test_a_batch_job_leaves_none(with_secrets: None, tmp_path: Path) -> None:
    """The secrets reach the ranks, which only pretend here, as the environment does."""
    fake = fake_ranks(tmp_path / "fake", [end(ExitCode.DONE, step=9)])
    overrides = ["experiment=smoke", "cluster=slurm", "cluster.num_nodes=2", f"run.root={tmp_path / 'runs'}"]
    more = ["cluster.slurm.exclusive=false", "cluster.preflight.free_bytes=0", "cluster.slurm.spare_nodes=1"]
    with SlurmCluster(3) as cluster:
        submitted = jobs.launch_submit(cluster, [*overrides, *more], environment={**fake, "SEEN": CANARY[:6]})
        assert submitted.exit_code == 0, submitted.stderr
        state = jobs.wait_for_end(cluster, submitted.jobs[0], limit_seconds=120)
    (run,) = submitted.directories
    assert state == "COMPLETED", jobs.output(run)
    assert [place["SEEN"] for place in seen(run)] == [CANARY[:6]]
    assert {"job.sbatch", "attempts.jsonl", f"{submitted.jobs[0]}.out"} <= {path.name for path in files(run)}
    assert leaks(tmp_path) == []
    assert CANARY not in submitted.stdout + submitted.stderr


def test_a_run_that_fails_with_a_traceback_and_an_unreachable_wandb_leaves_none_either(
    with_secrets: None, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    (root / "chosen" / "logs" / "rank-00001.log").mkdir(parents=True)  # where rank 1 wants to write its log
    overrides = [*SHORT, f"run.root={root}", "run.id=chosen", f"data.prepared_root={tmp_path / 'prepared'}"]
    finished = submit_to_end([*overrides, *UNREACHABLE], folder=tmp_path / "first")
    assert finished.exit_code == ExitCode.FAILED, finished.explain()
    assert "Traceback" in finished.stderr

    (root / "chosen" / "logs" / "rank-00001.log").rmdir()
    again = submit_to_end([*overrides, *UNREACHABLE, "reporting.wandb.mode=online"], folder=tmp_path / "second")
    assert again.exit_code == 0, again.explain()
    assert (root / "chosen" / "logs" / "wandb.log").exists()
    assert leaks(tmp_path) == []


@pytest.mark.parametrize(
    "override", [f"wandb.api_key={CANARY}", f"run.name={CANARY}", f"+deepspeed.extra.x={{hf_token: {CANARY}}}"]
)
def test_a_secret_on_the_command_line_is_refused_without_a_word_of_it(
    override: str, with_secrets: None, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    finished = submit_to_end(["experiment=smoke", f"run.root={root}", override], folder=tmp_path)
    assert finished.exit_code == ExitCode.BAD_CONFIG
    assert CANARY not in finished.stdout + finished.stderr
    assert not list(run_directories(root))

"""What a job decides without Slurm: its nodes, the node to blame, its commands; and what a user sees before."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.slurm import submission
from launch.slurm.bad_nodes import read_bad_nodes, remember_bad_nodes
from launch.slurm.job import Wishes
from launch.slurm.nodes import choose
from launch.slurm.start import blamed_nodes
from launch.slurm.step import added_environment, container_options, rank_command, rank_environment
from launch.submit import main
from training.config.load import compose
from training.config.schema import Resume, RunConfig
from training.config.slurm_schema import ContainerConfig
from training.errors import ConfigError

TWO_NODES = ["experiment=smoke", "cluster=slurm", "cluster.num_nodes=2", "cluster.processes_per_node=1"]
CONFIG = compose([*TWO_NODES, "run.root=/runs", "data.prepared_root=/prepared"])
RUN = Path("/runs/night")


def command(config: RunConfig = CONFIG, *, restarts: int = 0, until: str | None = None) -> list[str]:
    return rank_command(RUN, config, nodes=["node1", "node3"], restarts=restarts, until=until)


def test_spare_nodes_take_the_place_of_those_that_failed_or_are_known_to_be_bad() -> None:
    allocated = ("node1", "node2", "node3", "node4", "node5")
    assert choose(allocated, bad={"node2", "node3"}, number=2) == ("node1", "node4")
    assert choose(allocated, bad={"node2"}, number=4) == ("node1", "node3", "node4", "node5")
    assert choose(allocated, bad={"node2"}, number=5) == ()


def test_a_report_blames_the_node_of_its_host_or_else_of_its_rank() -> None:
    nodes = ["node1", "node3"]
    assert blamed_nodes({"rank": 9, "host": None}, nodes, 8) == ("node3",)
    assert blamed_nodes({"rank": 9, "host": "node1"}, nodes, 8) == ("node1",)
    assert blamed_nodes({"rank": 9, "host": "elsewhere"}, nodes, 8) == ("node3",)
    for rank in (16, -1, "9", None):
        assert blamed_nodes({"rank": rank, "host": None}, nodes, 8) == ()
    for report in ({}, None, [9], {"blamed": 3}, {"blamed": [3]}):
        assert blamed_nodes(report, nodes, 8) == ()


def test_whoever_reports_a_corruption_is_not_to_blame_for_it() -> None:
    nodes = ["node1", "node3"]
    assert blamed_nodes({"rank": 0}, nodes, 1) == ()
    assert blamed_nodes({"rank": 0, "blamed": [{"rank": 1, "host": "node3"}]}, nodes, 1) == ("node3",)
    both = [{"rank": rank, "host": "one machine"} for rank in (0, 1, 1)]
    assert blamed_nodes({"rank": 0, "blamed": both}, nodes, 1) == ("node1", "node3")


def test_bad_nodes_are_remembered_and_only_names_of_nodes_are_read(tmp_path: Path) -> None:
    assert read_bad_nodes(tmp_path) == {}
    remember_bad_nodes(tmp_path, {"node2": "HANG"})
    remember_bad_nodes(tmp_path, {"node7": "PREFLIGHT"})
    remember_bad_nodes(tmp_path, {"node7": "another reason"})
    assert read_bad_nodes(tmp_path) == {"node2": "HANG", "node7": "PREFLIGHT"}
    for content in ('{"node1,$(id)": "x"}', '["node1"]', '{"node1": 3}', "nonsense"):
        (tmp_path / "slurm" / "bad_nodes.json").write_text(content)
        with pytest.raises(ConfigError, match="mend or remove"):
            read_bad_nodes(tmp_path)


def test_the_ranks_start_by_srun_with_all_that_it_must_be_told_again() -> None:
    words = command()
    assert words[0] == "srun"
    assert {"--nodes=2", "--nodelist=node1,node3", "--ntasks=2", "--ntasks-per-node=1"} <= set(words)
    assert {"--cpus-per-task=1", "--kill-on-bad-exit=1", "--label"} <= set(words)
    assert words[-4:] == ["-m", "training.train", "/runs/night", "resume=auto"]


def test_only_the_first_start_of_a_run_that_must_resume_insists() -> None:
    must = replace(CONFIG, resume=replace(CONFIG.resume, mode=Resume.must))
    assert command(must)[-1] == "/runs/night"
    assert command(must, restarts=1)[-1] == "resume=auto"
    assert command(until="pretrain")[-1] == "run.until=pretrain"


def test_a_container_mounts_what_ranks_touch_and_takes_our_variables() -> None:
    slurm = CONFIG.cluster.slurm
    assert slurm is not None
    container = ContainerConfig(image="/images/torch.sqsh", mounts=["/opt/microsoft:/opt/microsoft:ro"])
    config = replace(CONFIG, cluster=replace(CONFIG.cluster, slurm=replace(slurm, container=container)))
    words = container_options(RUN, config)
    assert words[0] == "--container-image=/images/torch.sqsh"
    mounts = words[1].removeprefix("--container-mounts=").split(",")
    assert {"/runs/night:/runs/night", "/prepared:/prepared", "/opt/microsoft:/opt/microsoft:ro"} <= set(mounts)
    assert "MASTER_ADDR" in words[2]
    assert "python3" in command(config)
    assert sys.executable not in command(config)


def test_the_clusters_environment_reaches_the_ranks_and_ours_wins() -> None:
    azure = compose(["cluster=azure_nd_h100_v5", "stages.pretrain.global_batch_sequences=32", "run.root=/r"])
    added = added_environment(RUN, azure, address="10.0.0.1", port=20_007)
    assert added["NCCL_TOPO_FILE"] == "/opt/microsoft/ndv5-topo.xml"
    assert added["UCX_IB_PCI_RELAXED_ORDERING"] == "on"
    assert (added["MASTER_ADDR"], added["MASTER_PORT"], added["DS_ACCELERATOR"]) == ("10.0.0.1", "20007", "cuda")


def test_ranks_know_nothing_of_a_launcher_around_the_shell_that_submitted() -> None:
    base = {"RANK": "3", "LOCAL_RANK": "1", "AUTARKY_LAUNCHER": "7:9", "HOME": "/root"}
    given = rank_environment(RUN, CONFIG, address="10.0.0.1", port=20_007, base=base)
    assert given["HOME"] == "/root"
    assert not {"RANK", "LOCAL_RANK", "AUTARKY_LAUNCHER"} & set(given)


def test_a_dry_run_prints_script_command_rank_map_and_environment_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TWO_NODES, f"run.root={tmp_path}/runs", "run.id=night", "cluster.dry_run=true", "run.seed=3"]
    assert main([*words, "cluster.processes_per_node=2"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "#SBATCH --nodes=2",
        "sbatch --parsable",
        "--kill-on-bad-exit=1",
        "NODE1: ranks 2 to 3",
        "exec env PYTHONPATH=",
        '--number "$SLURM_NODEID" --count 2 --meet ADDRESS:PORT',
        "MASTER_PORT=",
    ):
        assert part in printed
    assert main([*words, "cluster.slurm.chain=stages"]) == 0
    printed = capsys.readouterr().out
    assert "--dependency=afterok:JOB --kill-on-invalid-dep=yes" in printed
    assert "--until=anneal" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_one_array_and_a_refused_point_does_not_stop_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TWO_NODES, f"run.root={tmp_path}/runs", "cluster.dry_run=true", "-m", "optimizer.lr=1e-3,-1,1e-4"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "#SBATCH --array=0-1" in printed.out
    assert "optimizer.lr=-1" in printed.err
    assert main([*words[:-2], "-m", "cluster.num_nodes=1,2,4"]) == 2
    assert "one array job" in capsys.readouterr().err


def test_without_slurm_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*TWO_NODES, f"run.root={tmp_path}/runs"]) == 2
    assert "cluster=local" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_known_bad_nodes_are_left_out_of_a_later_submission(tmp_path: Path) -> None:
    remember_bad_nodes(tmp_path, {"node2": "HANG"})
    (batch,) = submission.batches([CONFIG], [tmp_path])
    assert "#SBATCH --exclude=node2\n" in batch.text


STEP = """
import signal, sys, time
def told(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    sys.exit(10)
signal.signal(signal.SIGUSR1, told)
print("ready", flush=True)
time.sleep(60)
"""
JOB = f"""
import os, sys
from launch.slurm.job import Wishes
wishes = Wishes.listen()
code = wishes.run_step([sys.executable, "-c", {STEP!r}], os.environ, is_ending=lambda: False)
print("code", code, "received", len(wishes.received), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_both_signals_reach_the_step_as_the_one_that_srun_hands_on(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        time.sleep(0.05)
        os.kill(job.pid, number)
        assert job.stdout.read().splitlines() == ["told SIGUSR1", "code 10 received 1"]


def test_a_step_that_nobody_reports_the_end_of_is_ended() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    begun = time.monotonic()
    code = Wishes().run_step([sys.executable, "-c", deaf], os.environ, is_ending=lambda: True, patience_seconds=0.5)
    assert code == -signal.SIGKILL
    assert time.monotonic() - begun < 20


def test_the_list_of_jobs_of_a_run_is_numbers_only(tmp_path: Path) -> None:
    assert submission.jobs_of(tmp_path) == []
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.txt").write_text("17\n--all\n18\n")
    assert submission.jobs_of(tmp_path) == ["17", "18"]

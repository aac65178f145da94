"""A job of 8 ranks on 2 nodes is one run in wandb, begun by one `wandb.init`."""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.reading import ledger, records
from tests.integration.running import Job, only_run, run_to_end
from tests.integration.test_launchers import BIN, MODULE, SHORT, free_port
from tests.integration.wandb_log import assert_equal_to_the_log
from tests.wandb_server import WandbServer

RUN = [
    *(word for word in SHORT if not word.startswith(("reporting.wandb", "stages.pretrain.tokens"))),
    "stages.pretrain.tokens=1024",
    "stages.pretrain.micro_batch_sequences=1",
    "stages.anneal.micro_batch_sequences=1",
    "cluster.num_nodes=2",
    "cluster.processes_per_node=4",
    "reporting.wandb.mode=online",
]


def test_eight_ranks_on_two_nodes_begin_one_wandb_run(
    tmp_path: Path, prepared_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    meeting = ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    common = [str(BIN / "torchrun"), "--nnodes=2", "--nproc_per_node=4", *meeting]
    overrides = [*RUN, f"run.root={root}", f"data.prepared_root={prepared_root}"]
    with WandbServer() as wandb_server, ExitStack() as stack:
        for name, value in wandb_server.environment().items():
            monkeypatch.setenv(name, value)
        jobs = [
            stack.enter_context(Job([*common, f"--node_rank={node}", *MODULE, *overrides], folder=tmp_path))
            for node in range(2)
        ]
        for job in jobs:
            finished = job.wait()
            assert finished.exit_code == 0, finished.explain()
        run = only_run(root)
        assert ledger(run)["state"] == "done"
        (start,) = records(run, "start")
        assert start["world_size"] == 8
        assert wandb_server.starts == [run.name]
        command = [sys.executable, "-m", "training.reporting.send_to_wandb", str(run)]
        sent = run_to_end(command, folder=tmp_path)  # eight ranks on few cores may leave it too little time at the end
        assert sent.exit_code == 0, sent.explain()
        assert list(wandb_server.runs) == [run.name]
        assert_equal_to_the_log(wandb_server.only_run(), run)
        assert wandb_server.only_run().values()["start"]["rank_map"] == start["hosts"]

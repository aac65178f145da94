"""Preflight over real ssh: good nodes pass, a node that is down or does not see the shared folder is named."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import Finished, run_to_end
from tests.launchers.nodes import Nodes, running_nodes, why_not
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

UNMOUNTED = "apart"
"""Folder that one of the nodes sees empty: something else is mounted over it there."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / UNMOUNTED).mkdir()
    with running_nodes(folder, mounted_over={1: folder / UNMOUNTED}) as nodes:
        yield nodes


def preflight(nodes: Nodes, folder: Path, *words: str, root: Path | None = None) -> Finished:
    limits = ["cluster.preflight.free_bytes=0", "cluster.preflight.check_seconds=10"]
    where = [f"run.root={root or folder / 'runs'}", f"data.prepared_root={folder}"]
    command = [sys.executable, "-m", "launch.preflight", "experiment=smoke", *nodes.overrides(folder, slots=1)]
    return run_to_end([*command, *limits, *where, *words], folder=folder, limit_seconds=200)


def failures(told: dict[str, Any], number: int) -> dict[str, str]:
    return {f["check"]: f["seen"] for f in told["nodes"][number]["findings"] if f["status"] == "fail"}


def test_good_nodes_pass_and_their_collective_is_measured(nodes: Nodes, tmp_path: Path) -> None:
    collective = "cluster.preflight.collective_bytes=1_000_000"
    finished = preflight(nodes, tmp_path, collective, "cluster.preflight.collective_bytes_per_second=1e3", "--json")
    assert finished.exit_code == ExitCode.DONE, finished.explain()
    told = json.loads(finished.stdout.splitlines()[-1])
    assert told["bad"] == []
    seen = [{f["check"]: f["status"] for f in node["findings"]} for node in told["nodes"]]
    for checks in seen:
        assert {checks[name] for name in ("clock", "shared folder", "versions", "rendezvous port", "disk speed")} == {
            "ok"
        }
    assert seen[0]["collective"] == "ok"
    assert nodes.survivors(within_seconds=5) == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_node_that_is_down_is_named_and_nothing_is_started(nodes: Nodes, tmp_path: Path) -> None:
    hosts = nodes.hostfile(tmp_path, slots=1)
    hosts.write_text(hosts.read_text() + "127.0.78.99 slots=1\n")
    words = ["cluster=hostfile", f"cluster.hostfile.path={hosts}", f"cluster.hostfile.ssh_config={nodes.ssh_config}"]
    batch = [f"stages.{name}.global_batch_sequences=12" for name in ("pretrain", "anneal")]
    layout = [f"parallel@stages.{name}.parallel=zero1" for name in ("pretrain", "anneal")]
    words += [*batch, *layout, "cluster.preflight.free_bytes=0", "cluster.preflight.check_seconds=5"]
    words += [f"run.root={tmp_path / 'runs'}", f"data.prepared_root={tmp_path}"]
    command = [sys.executable, "-m", "launch.submit", "experiment=smoke", *words]
    finished = run_to_end(command, folder=tmp_path, limit_seconds=200)
    assert finished.exit_code == ExitCode.PREFLIGHT, finished.explain()
    assert "preflight: 1 of 3 nodes failed: 127.0.78.99" in finished.stderr
    assert "cluster.hostfile.exclude=[127.0.78.99]" in finished.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_node_that_does_not_see_the_shared_folder_is_named(nodes: Nodes, tmp_path: Path) -> None:
    root = nodes.ssh_config.parent / UNMOUNTED
    finished = preflight(nodes, tmp_path, "--json", root=root)
    assert finished.exit_code == ExitCode.PREFLIGHT, finished.explain()
    told = json.loads(finished.stdout.splitlines()[-1])
    assert told["bad"] == [nodes.addresses[1]]
    assert "is not there" in failures(told, 1)["shared folder"]

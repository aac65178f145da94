"""A state saved on two nodes of two, 2 × 2 under ZeRO-3, goes on under every other layout and comes back unchanged."""

import json
import socket
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from tests.distributed.configs import STAGE
from tests.distributed.reshard_worker import (
    LAYOUTS,
    MOVES,
    NUM_STEPS_AFTER,
    SAVED_STEP,
    config_of,
    output_of,
)
from tests.integration.running import Job, run_to_end
from training.models.cut import cut
from training.models.sizes import chunk_size, num_parameters

WORKER = ["-m", "tests.distributed.reshard_worker"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STATE_BYTES_PER_PARAMETER = 3 * 4
"""The weight and two moments."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reshard")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = ["--master_addr=127.0.0.1", f"--master_port={probe.getsockname()[1]}"]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                Job(
                    [
                        *TORCHRUN,
                        "--nnodes=2",
                        f"--node_rank={node}",
                        "--nproc_per_node=2",
                        *master,
                        *WORKER,
                        str(folder),
                    ],
                    folder=folder / f"node{node}",
                )
            )
            for node in range(2)
        ]
        nodes[0].wait_until((folder / "saved").exists)
        for world_size in (2, 1):
            alone = [*TORCHRUN, "--standalone", f"--nproc_per_node={world_size}", *WORKER, str(folder)]
            finished = run_to_end(alone, folder=folder / f"world{world_size}")
            assert finished.exit_code == 0, finished.explain()
        for node in nodes:
            finished = node.wait()
            assert finished.exit_code == 0, finished.explain()
            assert node.survivors(within_seconds=30) == []
    found: dict[str, Any] = {"moved": {}}
    for world_size in LAYOUTS:
        content = json.loads(output_of(folder, world_size).read_text())
        found["moved"] |= content.pop("moved")
        if world_size == 4:
            found |= content
    return found


def test_the_four_processes_are_two_nodes_of_two(seen: dict[str, Any]) -> None:
    assert seen["places"] == [
        {"local_rank": str(rank % 2), "node": str(rank // 2), "world": [2, 2]} for rank in range(4)
    ]


@pytest.mark.parametrize(("model", "world_size", "layout"), MOVES)
def test_another_layout_goes_on_where_the_run_was(
    seen: dict[str, Any], model: str, world_size: int, layout: str
) -> None:
    moved = seen["moved"][f"{model} {layout}"]
    assert moved["update_waited"], "the next step's update overtook the copy of the state"
    assert moved["differing"] == [], "tensors changed by loading, or by the step beside the save"
    assert moved["update_counts"] == [f"[0] [{SAVED_STEP}]"] * world_size
    assert len(moved["losses"]) == NUM_STEPS_AFTER
    assert moved["losses"] == pytest.approx(seen["unbroken"][model], rel=1e-6)


@pytest.mark.parametrize(("model", "world_size", "layout"), MOVES)
def test_back_at_the_first_layout_the_run_goes_on_bit_by_bit(
    seen: dict[str, Any], model: str, world_size: int, layout: str
) -> None:
    returned = seen["returned"][f"{model} {layout}"]
    assert returned["differing"] == []
    assert all(counts.endswith(f" [{SAVED_STEP}]") for counts in returned["update_counts"])
    assert returned["losses"] == seen["unbroken"][model]


@pytest.mark.parametrize(("model", "world_size", "layout"), MOVES)
def test_every_rank_reads_its_share_and_all_together_the_state_once(
    seen: dict[str, Any], model: str, world_size: int, layout: str
) -> None:
    bytes_read = seen["moved"][f"{model} {layout}"]["bytes_read"]
    config = config_of(model, LAYOUTS[world_size][layout], world_size)
    parallel = config.layout_of(STAGE)
    replicas = world_size // parallel.pipeline
    parts = cut(config, STAGE) if parallel.pipeline > 1 else [range(config.model.num_layers + 3)]
    chunks = [chunk_size(config.model, part) for part in parts]
    held = [
        sum(chunk.num_parameters for chunk in chunks[place :: parallel.pipeline]) for place in range(parallel.pipeline)
    ]
    copied = sum(held) - num_parameters(config.model)
    assert copied == (
        config.model.vocab_size * config.model.hidden_size if model == "tied" and parallel.pipeline > 1 else 0
    )
    assert sum(bytes_read) == STATE_BYTES_PER_PARAMETER * sum(held)
    # Replicas share every parameter (or all of a kind) equally but for what no whole number divides.
    num_tensors = 9 * config.model.num_layers + 3
    edges = num_tensors * 2 * replicas * STATE_BYTES_PER_PARAMETER if replicas > 1 else 0
    for rank, mine in enumerate(bytes_read):
        share = STATE_BYTES_PER_PARAMETER * held[rank // replicas] / replicas
        assert abs(mine - share) <= edges < share / 50, f"rank {rank}"

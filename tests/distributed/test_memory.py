"""Memory of real processes: the plan against pipelines that train, and what building a sharded model takes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.building_worker import BUILT
from tests.distributed.configs import STAGE
from tests.distributed.memory_worker import LAYOUTS, WORLD_SIZE, config_of
from tests.integration.running import run_to_end
from training.config.schema import Precision
from training.models.cut import cut
from training.models.sizes import chunk_size

SMALL_BYTES = 8 * 2**20
"""What a process holds besides the tensors that are counted: buffers of gloo, Python's objects."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return run_worker("memory_worker", tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return run_worker("building_worker", tmp_path_factory.mktemp("building"), "MALLOC_MMAP_THRESHOLD_=65536")


def run_worker(module: str, folder: Path, *environment: str) -> dict[str, list[dict[str, Any]]]:
    output = folder / "seen.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    worker = ["-m", f"tests.distributed.{module}", str(output)]
    finished = run_to_end(["env", *environment, *torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_held_between_steps_is_what_the_plan_says(seen: dict[str, Any], layout: str) -> None:
    config = config_of(**LAYOUTS[layout])
    for rank in seen[layout]:
        plan, expected = rank["plan"], rank["plan"]["weights_bytes"] + rank["plan"]["optimizer_bytes"]
        parts = cut(config, STAGE)[rank["pipeline_stage"] :: config.parallel.pipeline]
        chunks = [chunk_size(config.model, part, expert=config.parallel.expert) for part in parts]
        engines = [engine for chunk in chunks for engine in (chunk, chunk.experts) if engine is not None]
        if config.parallel.zero_stage == 3:  # gradients and the bucket of each engine stay
            expected += plan["gradients_bytes"] + sum(4 * max(engine.layers) for engine in engines)
        elif config.parallel.zero_stage == 1 and config.precision is Precision.bf16:  # the fp32 ones stay
            expected += 4 * sum(engine.num_parameters for engine in engines)
        assert rank["between_steps"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step_takes_more_than_the_plan_or_much_less(seen: dict[str, Any], layout: str) -> None:
    for rank in seen[layout]:
        assert 0.75 * rank["total"] < rank["highest"] <= 1.02 * rank["total"], rank


@pytest.mark.parametrize("layout", BUILT)
def test_a_model_is_built_in_the_memory_of_its_shards_and_one_layer(built: dict[str, Any], layout: str) -> None:
    element_bytes = 2 if "bf16" in layout else 4
    for rank in built[layout]:
        assert len(rank["models"]) == BUILT[layout].get("chunks_per_rank", 1)
        for model in rank["models"]:
            shards = element_bytes * model["whole"] / rank["num_replicas"]
            most = shards + 4 * model["largest_layer"] + SMALL_BYTES
            assert most < 4 * model["whole"], "a model built whole would not be noticed"
            assert shards < model["rise"] <= most, rank


@pytest.mark.parametrize("layout", BUILT)
def test_building_an_engine_never_takes_more_than_the_engine_holds(built: dict[str, Any], layout: str) -> None:
    # The highest point is the end, when AdamW's moments are there. DeepSpeed's copies on the way (shards put one after
    # the other, masters converted to fp32, a gradient buffer for one sub-group) are gone by then, and smaller.
    for rank in built[layout]:
        assert 0.9 * rank["held"] < rank["rise"] <= rank["held"] + SMALL_BYTES, rank


@pytest.mark.parametrize("layout", BUILT)
def test_a_closed_engine_leaves_no_memory_behind(built: dict[str, Any], layout: str) -> None:
    for rank in built[layout]:
        assert rank["left"] < SMALL_BYTES < 0.1 * rank["held"], rank


@pytest.mark.parametrize("layout", BUILT)
def test_sharding_layer_by_layer_changes_no_bit_of_the_initial_weights(built: dict[str, Any], layout: str) -> None:
    assert [rank["wrong"] for rank in built[layout]] == [[]] * WORLD_SIZE

"""The memory plan against pipelines that really train: two pipeline stages of two replicas."""

import json
import sys
from typing import Any

import pytest

from tests.distributed.configs import STAGE
from tests.distributed.memory_worker import LAYOUTS, PIPELINE, WORLD_SIZE, config_of
from tests.integration.running import run_to_end
from training.config.schema import Precision
from training.models.cut import cut
from training.models.sizes import chunk_size


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("memory")
    output = folder / "seen.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    finished = run_to_end([*torchrun, "-m", "tests.distributed.memory_worker", str(output)], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_held_between_steps_is_what_the_plan_says(seen: dict[str, Any], layout: str) -> None:
    config = config_of(**LAYOUTS[layout])
    for rank in seen[layout]:
        plan, expected = rank["plan"], rank["plan"]["weights_bytes"] + rank["plan"]["optimizer_bytes"]
        chunks = [chunk_size(config.model, part) for part in cut(config, STAGE)[rank["pipeline_stage"] :: PIPELINE]]
        if config.parallel.zero_stage == 3:  # gradients and the bucket of each chunk stay
            expected += plan["gradients_bytes"] + sum(4 * max(chunk.layers) for chunk in chunks)
        elif config.parallel.zero_stage == 1 and config.precision is Precision.bf16:  # the fp32 ones stay
            expected += 4 * sum(chunk.num_parameters for chunk in chunks)
        assert rank["between_steps"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step_takes_more_than_the_plan_or_much_less(seen: dict[str, Any], layout: str) -> None:
    for rank in seen[layout]:
        assert 0.75 * rank["total"] < rank["highest"] <= 1.02 * rank["total"], rank

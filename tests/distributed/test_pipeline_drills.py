"""What our pipeline over ZeRO costs in collectives, holds in bytes, and keeps equal: 2 pipeline stages × 2 replicas."""

import json
import sys
from typing import Any

import pytest

from tests.distributed.configs import GLOBAL_BATCH, STAGE
from tests.distributed.pipeline_drills_worker import COUNTED, HELD, PIPELINE, TIED, WORLD_SIZE, config_of
from tests.integration.running import run_to_end
from training.models.sizes import num_parameters

REPLICAS = WORLD_SIZE // PIPELINE
NUM_MICRO_BATCHES = GLOBAL_BATCH // (config_of().stages[STAGE].micro_batch_sequences * REPLICAS)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("drills")
    output = folder / "seen.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    worker = ["-m", "tests.distributed.pipeline_drills_worker", str(output)]
    finished = run_to_end([*torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.mark.parametrize("layout", [name for name in COUNTED if "per_step" in name])
def test_kept_weights_are_gathered_once_per_layer_and_step(ranks: list[dict[str, Any]], layout: str) -> None:
    for rank in ranks:
        seen = rank["counted"][layout]
        assert seen["counts"]["all_gather"] == seen["num_layers"]


@pytest.mark.parametrize("layout", [name for name in COUNTED if "per_microbatch" in name])
def test_other_weights_are_gathered_twice_per_layer_and_micro_batch(ranks: list[dict[str, Any]], layout: str) -> None:
    for rank in ranks:
        seen = rank["counted"][layout]
        assert seen["counts"]["all_gather"] == 2 * NUM_MICRO_BATCHES * seen["num_layers"]


@pytest.mark.parametrize("layout", COUNTED)
def test_gradients_are_reduced_at_most_once_per_layer_and_micro_batch(ranks: list[dict[str, Any]], layout: str) -> None:
    for rank in ranks:
        seen = rank["counted"][layout]
        assert 0 < seen["counts"]["reduce_scatter"] <= NUM_MICRO_BATCHES * seen["num_layers"]
        assert seen["counts"]["reduce_scatter"] % NUM_MICRO_BATCHES == 0


def test_transfers_are_one_activation_and_one_gradient_per_cut_and_micro_batch(ranks: list[dict[str, Any]]) -> None:
    for layout, num_cuts in (("per_step", 1), ("interleaved_per_step", 3)):
        counts = [rank["counted"][layout]["counts"] for rank in ranks]
        assert sum(count["send"] for count in counts) == 2 * num_cuts * NUM_MICRO_BATCHES * REPLICAS
        assert sum(count["send"] for count in counts) == sum(count["receive"] for count in counts)


def test_how_weights_are_gathered_changes_no_number(ranks: list[dict[str, Any]]) -> None:
    same = [name for name in COUNTED if "interleaved" not in name and "bf16" not in name]
    losses = {rank["counted"][layout]["loss"] for rank in ranks for layout in same}
    assert len(losses) == 1


def test_in_bf16_weights_and_activations_travel_in_bf16_and_gradients_are_reduced_in_fp32(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        dtypes = rank["counted"]["bf16_per_microbatch"]["dtypes"]
        assert dtypes["all_gather"] == dtypes["send"] == dtypes["receive"] == ["torch.bfloat16"]
        assert dtypes["reduce_scatter"] == ["torch.float32"]


@pytest.mark.parametrize("layout", HELD)
def test_bytes_held_between_steps_are_an_equal_share_of_all(ranks: list[dict[str, Any]], layout: str) -> None:
    config = config_of()
    fp32_bytes = 4 * num_parameters(config.model)
    # optimizer: master weights, which ZeRO-3 keeps in fp32 runs too, and two moments.
    total = {"weights": fp32_bytes, "gradients": fp32_bytes, "optimizer": 3 * fp32_bytes}
    for rank in ranks:
        for kind, num_bytes in rank["held"][layout].items():
            assert num_bytes == pytest.approx(total[kind] / WORLD_SIZE, rel=0.05), kind


@pytest.mark.parametrize("layout", TIED)
def test_copies_of_a_tied_weight_are_bitwise_equal_after_20_steps(ranks: list[dict[str, Any]], layout: str) -> None:
    seen = [rank["tied"][layout] for rank in ranks]
    assert [rank["bits"] for rank in seen[:REPLICAS]] == [rank["bits"] for rank in seen[-REPLICAS:]]
    assert seen[0]["bits"] != seen[1]["bits"], "both replicas hold the same range, so nothing is sharded"
    assert all(rank["moved"] > 1e-3 for rank in seen)


def test_micro_batches_of_different_length_give_what_padded_ones_give(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["shapes"]["different"] == pytest.approx(rank["shapes"]["padded"], rel=1e-5)

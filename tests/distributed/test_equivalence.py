"""Every layout computes the same run: losses, gradient norms, weights, moments, scores. One start per world size."""

import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.configs import small_config
from tests.distributed.equivalence_worker import (
    AFTER_SAVE,
    ALL,
    CROSSED,
    LAYOUTS,
    LRS,
    MEASURED_STEP,
    PLAIN,
    POISONED,
    SAVED_STEP,
    WIDE,
    WIDE_CROSSED,
    WORLDS,
    steps_of,
)
from tests.distributed.reference import train_plain
from tests.integration.running import run_to_end
from training.config.schema import PipelineEngineKind

LAYER_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
"""Relative; bf16 rounds each product of the gradient to 3 digits."""
MUON_TOLERANCE = 1e-4
"""Newton-Schulz steps make small singular values large, and their rounding too."""
PAIRS = [(saved, loaded) for group in CROSSED + WIDE_CROSSED for saved in group for loaded in group]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    seen: dict[str, Any] = {"layouts": {}, "examined": {}, "largest": {}, "groups": {}}
    for world_size in WORLDS:
        folder = tmp_path_factory.mktemp(f"equivalence{world_size}")
        output = folder / "seen.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        worker = ["-m", "tests.distributed.equivalence_worker", str(output), str(folder)]
        finished = run_to_end([*torchrun, *worker], folder=folder)
        assert finished.exit_code == 0, finished.explain()
        for part, content in json.loads(output.read_text()).items():
            seen[part] |= content
    return seen


@pytest.mark.parametrize("layout", ALL)
def test_losses_and_gradient_norms_are_those_of_plain_torch(seen: dict[str, Any], layout: str) -> None:
    found = seen["layouts"][layout]
    num_steps = len(found["losses"])
    plain = {name: values[:num_steps] for name, values in plain_run(**plain_options(layout)).items()}
    tolerance = 2e-2 if layout.endswith("bf16") else 1e-5
    assert found["losses"] == pytest.approx(plain["losses"], rel=tolerance)
    assert found["norms"] == pytest.approx(plain["norms"], rel=tolerance if tolerance < 1e-2 else 5e-2)
    assert plain["losses"][-1] < plain["losses"][0] - 0.1, "the model learned nothing, so nothing was compared"
    for here, there in zip(found.get("preference", ()), plain.get("preference", ()), strict=True):
        assert here == pytest.approx(there, rel=50 * tolerance, abs=50 * tolerance)


@pytest.mark.parametrize("layout", ALL)
def test_each_layer_has_the_norms_it_has_in_plain_torch(seen: dict[str, Any], layout: str) -> None:
    if ALL[layout].get("pipeline_engine") is PipelineEngineKind.deepspeed:
        assert seen["layouts"][layout]["layers"] == []
        return
    [found] = seen["layouts"][layout]["layers"]
    plain = plain_run(**plain_options(layout))["layers"][MEASURED_STEP]
    assert found["names"] == plain["names"]
    assert math.hypot(*found["grad_norms"]) == pytest.approx(seen["layouts"][layout]["norms"][MEASURED_STEP], rel=1e-6)
    tolerance = LAYER_TOLERANCE["bf16" if "bf16" in layout else "fp32"]
    tolerance = max(tolerance, MUON_TOLERANCE) if "muon" in layout else tolerance
    for kind in ("weight_norms", "grad_norms", "update_norms"):
        assert found[kind] == pytest.approx(plain[kind], rel=tolerance)


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_largest_number_of_all_ranks_comes_with_the_lowest_rank_that_has_it(
    seen: dict[str, Any], world_size: int
) -> None:
    assert seen["largest"][str(world_size)] == [[2**40, world_size - 1], [7 * 1024, 0], [-1024, 0]]


@pytest.mark.parametrize("world_size", WORLDS)
def test_no_process_group_outlives_its_engine(seen: dict[str, Any], world_size: int) -> None:
    assert seen["groups"][str(world_size)] == [2] * world_size, "one for texts, one that DeepSpeed keeps"


@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_a_checkpoint_of_any_layout_continues_under_any_other(seen: dict[str, Any], saved: str, loaded: str) -> None:
    crossing = seen["examined"][loaded]["crossings"][saved]
    unbroken = seen["layouts"][loaded]
    assert crossing["step"] == SAVED_STEP
    assert crossing["differing"] == [], "tensors changed by loading and saving again"
    steps = slice(AFTER_SAVE.start, AFTER_SAVE.stop)
    if saved == loaded:
        assert crossing["losses"] == unbroken["losses"][steps]
        assert crossing["norms"] == unbroken["norms"][steps]
    else:
        tolerance = 2e-2 if loaded.endswith("bf16") else 1e-6
        assert crossing["losses"] == pytest.approx(unbroken["losses"][steps], rel=tolerance)


@pytest.mark.parametrize("layout", PLAIN)
def test_an_evaluation_between_two_steps_is_not_felt(seen: dict[str, Any], layout: str) -> None:
    scoring = seen["examined"][layout]["scoring"]
    assert scoring["disturbed"] == scoring["undisturbed"]


@pytest.mark.parametrize("layout", PLAIN)
def test_scores_are_those_of_the_plain_decoder_on_every_rank(seen: dict[str, Any], layout: str) -> None:
    scoring = seen["examined"][layout]["scoring"]
    assert scoring["equal_on_ranks"]
    assert scoring["tokens_equal_plain"]
    assert scoring["largest_relative_error"] < 1e-5


@pytest.mark.parametrize(
    ("layout", "rank"), [(layout, rank) for layout in POISONED for rank in range(4 if layout in WIDE else 2)]
)
def test_a_nan_on_one_rank_changes_nothing_on_any(seen: dict[str, Any], layout: str, rank: int) -> None:
    poisoning = seen["examined"][layout]["poisonings"][str(rank)]
    if ALL[layout].get("pipeline_engine") is not PipelineEngineKind.deepspeed:
        (culprit,) = set(poisoning["culprits"])
        assert culprit.startswith(f"rank {rank}, pipeline stage {poisoning['stage']}, micro-batch 0, ")
        assert poisoning["poisoned_layer"] in culprit
    assert poisoning["loss_is_finite"], "the poison must be in the gradient alone"
    assert poisoning["skipped_everywhere"]
    assert poisoning["unchanged_everywhere"]
    assert poisoning["next"] == poisoning["expected_next"]


@cache
def plain_run(**options: Any) -> dict[str, list[Any]]:
    num_steps = max(steps_of(layout) for layout in ALL if plain_options(layout) == options)
    return train_plain(small_config(world_size=1, **options), LRS[:num_steps])


def plain_options(layout: str) -> dict[str, Any]:
    """The part of a layout's options that changes the numbers."""
    changing = ("tied", "precision", "dropout", "narrow", "experts", "ramped", "grouped", "documents", "prediction")
    changing += ("muon", "pairs")
    return {key: value for key, value in ALL[layout].items() if key in changing}


def test_the_layouts_under_test_are_the_ones_that_a_user_can_choose() -> None:
    conf = Path(__file__).parents[2] / "conf" / "parallel"
    chosen = {path.stem for path in conf.glob("*.yaml")}
    # Its axes are those of the matrix (tests/distributed/matrix.py); 15 pipeline stages are more than run here.
    large = {"pipeline_sequence_expert"}
    assert chosen - {"single"} - large <= set(LAYOUTS)

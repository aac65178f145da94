"""What a person is told about a run's layers."""

import math
from dataclasses import replace

from training.reporting.layer_health import layer_health
from training.reporting.records import LayersRecord

NAMES = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
WELL = LayersRecord(
    step=100,
    stage="pretrain",
    attempt=0,
    names=NAMES,
    weight_norms=[10.0, 20.0, 20.0, 5.0, 10.0],
    grad_norms=[0.5, 0.4, 0.3, 0.1, 0.6],
    update_norms=[0.02, 0.02, 0.02, 0.01, 0.01],
)


def changed(**lists: dict[int, float]) -> LayersRecord:
    """The healthy record with some numbers exchanged, by place."""
    fields = {name: [values.get(i, old) for i, old in enumerate(getattr(WELL, name))] for name, values in lists.items()}
    return replace(WELL, **fields)


def test_without_a_record_nothing_is_said() -> None:
    assert layer_health([]) == ""


def test_layers_that_learn_as_usual_need_no_advice() -> None:
    assert layer_health([WELL, replace(WELL, step=200)]) == (
        "layers, last 2 records up to step 200: update-to-weight ratio from 1.0e-03 (model.layers.0) to 2.0e-03 "
        "(model.embed_tokens)"
    )


def test_layers_that_hardly_learn_or_jump_or_dominate_are_named() -> None:
    assert "\n    -> hardly learning: model.layers.1; " in layer_health([changed(update_norms={2: 1e-6})])
    assert "tenth in a step: model.embed_tokens, lm_head; " in layer_health([changed(update_norms={0: 1.5, 4: 2.0})])
    assert "-> lm_head has 99 % of the squared gradient norm" in layer_health([changed(grad_norms={4: 9.0})])
    assert "and 2 more" in layer_health([replace(WELL, update_norms=[9.0] * 5)])


def test_one_odd_record_among_several_is_no_trend() -> None:
    assert "->" not in layer_health([WELL, WELL, changed(update_norms={0: 5.0}), WELL, WELL])


def test_a_gradient_that_is_not_finite_is_named_by_its_layer() -> None:
    broken = replace(changed(grad_norms={1: math.nan}), update_norms=[0.0] * 5)
    assert layer_health([WELL, broken]).startswith("layers at step 100: the gradient is not finite in model.layers.0")


def test_a_step_that_changed_nothing_is_no_layer_that_hardly_learns() -> None:
    skipped = replace(WELL, step=200, update_norms=[0.0] * 5)
    assert layer_health([skipped]) == "layers at step 200: nothing was updated"
    assert layer_health([WELL, skipped]) == layer_health([WELL])


def test_weights_that_are_all_zero_have_no_ratio() -> None:
    assert "(model.layers.0) to " in layer_health([changed(weight_norms={3: 0.0})])

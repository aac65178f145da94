from dataclasses import replace
from typing import Any

import pytest

from training.config.data_schema import SourceConfig, SourceForm, SourceKind
from training.config.load import compose
from training.config.model_schema import PredictionConfig
from training.config.schema import ParallelConfig, PipelineEngineKind, RunConfig
from training.config.stage_data_checks import check_stage_data
from training.config.stage_schema import MixtureChange, Packing, PreferenceConfig, StageKind
from training.errors import ConfigError

SMOKE = compose(["experiment=smoke"])
SOURCES = {
    "texts": SourceConfig(kind=SourceKind.kjv),
    "talks": SourceConfig(kind=SourceKind.json, form=SourceForm.conversations, path="x"),
    "pairs": SourceConfig(kind=SourceKind.json, form=SourceForm.preferences, path="x"),
    "aside": SourceConfig(kind=SourceKind.kjv, held_out_fraction=1.0),
}


def run(**stage: Any) -> RunConfig:
    """Return the smoke run with another first training stage."""
    first = replace(SMOKE.stages["pretrain"], parallel=None, **stage)
    return replace(SMOKE, data=replace(SMOKE.data, sources=SOURCES), stages={"s": first})


PREFERENCE = {"kind": StageKind.preference, "mixture": {"pairs": 1.0}}


@pytest.mark.parametrize(
    "stage",
    [
        {"mixture": {"texts": 1.0}},
        {"kind": StageKind.sft, "mixture": {"talks": 1.0}, "max_epochs": {"talks": 2.0}},
        {**PREFERENCE, "preference": PreferenceConfig(beta=0.2)},
        {"kind": StageKind.long_context, "mixture": {"texts": 1.0}, "min_document_tokens": 100},
        {
            "mixture": {"texts": 1.0},
            "mixture_changes": [
                MixtureChange(from_fraction=0.2, mixture={"texts": 1.0}),
                MixtureChange(from_fraction=0.7, mixture={"texts": 2.0}),
            ],
        },
    ],
)
def test_what_fits_is_let_through(stage: dict[str, Any]) -> None:
    check_stage_data(run(**stage), "s")


@pytest.mark.parametrize(
    ("stage", "key", "remedy"),
    [
        ({"mixture": {"text": 1.0}}, "stages.s.mixture", "texts"),
        ({"mixture": {"talks": 1.0}}, "stages.s.mixture", "texts"),
        ({"kind": StageKind.sft, "mixture": {"texts": 1.0}}, "stages.s.mixture", "talks"),
        ({"mixture": {"aside": 1.0}}, "stages.s.mixture", "leave aside out"),
        (
            {
                "mixture": {"texts": 1.0},
                "mixture_changes": [MixtureChange(from_fraction=0.5, mixture={"pairs": 1.0})],
            },
            "stages.s.mixture_changes.0.mixture",
            "texts",
        ),
        (
            {
                "mixture": {"texts": 1.0},
                "mixture_changes": [
                    MixtureChange(from_fraction=0.7, mixture={"texts": 1.0}),
                    MixtureChange(from_fraction=0.2, mixture={"texts": 1.0}),
                ],
            },
            "stages.s.mixture_changes",
            "[0.2, 0.7]",
        ),
        ({"mixture": {"texts": 1.0}, "max_epochs": {"talks": 1.0}}, "stages.s.max_epochs", "texts"),
        (
            {"kind": StageKind.sft, "mixture": {"talks": 1.0}, "packing": Packing.sequential},
            "stages.s.packing",
            "best_fit",
        ),
        ({"mixture": {"texts": 1.0}, "min_document_tokens": 9}, "stages.s.min_document_tokens", "best_fit"),
        ({"mixture": {"texts": 1.0}, "preference": PreferenceConfig()}, "stages.s.preference", "kind=preference"),
        ({**PREFERENCE, "document_mask": False}, "stages.s.document_mask", "document_mask=true"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(stage: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_stage_data(run(**stage), "s")
    assert caught.value.key == key
    assert remedy in caught.value.remedy


def test_a_source_that_the_mixture_does_not_draw_from_has_no_limit() -> None:
    config = run(mixture={"texts": 1.0}, max_epochs={"texts2": 1.0})
    config = replace(config, data=replace(config.data, sources={**SOURCES, "texts2": SOURCES["texts"]}))
    with pytest.raises(ConfigError, match=r"stages\.s\.max_epochs\.texts2.*does not draw"):
        check_stage_data(config, "s")


def test_preferences_refuse_engines_and_models_that_cannot_compare_answers() -> None:
    config = run(**PREFERENCE)
    theirs = ParallelConfig(pipeline=2, pipeline_engine=PipelineEngineKind.deepspeed)
    with pytest.raises(ConfigError, match=r"parallel\.pipeline_engine=deepspeed"):
        check_stage_data(replace(config, parallel=theirs), "s")
    model = replace(config.model, prediction=PredictionConfig(num_blocks=1))
    with pytest.raises(ConfigError, match=r"model\.prediction"):
        check_stage_data(replace(config, model=model), "s")

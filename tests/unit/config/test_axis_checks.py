"""Tensor, sequence and expert axes: what cannot be dealt evenly is refused with what can; what no engine runs, too."""

from typing import Any

import pytest

from training.config.load import compose
from training.errors import ConfigError

MAI1 = ["experiment=mai1_500b", "parallel.schedule=1f1b", "parallel.chunks_per_rank=1"]


def refused(*overrides: str, to_plan: bool = True) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        compose([*MAI1, *overrides], to_plan=to_plan)
    return raised.value


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["parallel.sequence=5"], "parallel.sequence", "parallel.sequence=6 works"),
        (["parallel.tensor=7", "parallel.sequence=1"], "parallel.tensor", "parallel.tensor=8 works"),
        (["parallel.expert=16"], "parallel.expert", "parallel.expert=8 works (1, 2, 4, 8 do)"),
        (["parallel.sequence=16"], "parallel.sequence", "parallel.sequence=8 works"),
        (["parallel.zero_secondary_ranks=8"], "parallel.zero_secondary_ranks", "parallel.zero_stage=3"),
        (
            ["parallel.zero_secondary_ranks=7", "parallel.zero_stage=3"],
            "parallel.zero_secondary_ranks",
            "parallel.zero_secondary_ranks=8 works (2, 4, 5, 8 do)",
        ),
        (["model.experts.experts_per_token=65"], "model.experts.experts_per_token", "experts_per_token=64 is the most"),
        (["model.experts.num_dense_layers=60"], "model.experts.num_dense_layers", "num_dense_layers=59 is the most"),
        (["model.experts=null"], "parallel.expert", "parallel.expert=1, or a model with experts"),
        (
            ["parallel.pipeline=1", "parallel.zero_stage=0", "precision=fp32", "parallel.recompute=none"],
            "parallel.zero_stage",
            "parallel.zero_stage=1, or parallel.expert=1",
        ),
        (["stages.pretrain.sequence_length=4098"], "parallel.sequence", "parallel.sequence=6 works"),
        (["parallel.pipeline_engine=deepspeed"], "parallel.sequence", "parallel.pipeline_engine=autarky can"),
        (
            ["parallel.pipeline_engine=deepspeed", "parallel.sequence=1"],
            "parallel.expert",
            "parallel.pipeline_engine=autarky can",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(overrides: list[str], key: str, remedy: str) -> None:
    error = refused(*overrides)
    assert error.key == key
    assert remedy in error.remedy


def test_the_advice_fits() -> None:
    config = compose(
        [
            *MAI1,
            "parallel.sequence=16",
            "parallel.pipeline=15",
            "parallel.expert=4",
            "cluster.num_nodes=1920",
            "stages.pretrain.global_batch_sequences=7680",
        ],
        to_plan=True,
    )
    assert config.num_replicas("pretrain") * 16 * 15 == config.world_size


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["parallel.expert=1", "parallel.sequence=1", "parallel.tensor=8"], "parallel.tensor"),
        (
            [
                *("model.experts=null", "parallel.expert=1", "parallel.sequence=1", "parallel.zero_stage=3"),
                *("parallel.zero_secondary_ranks=5", "parallel.pipeline=60", "parallel.recompute=none"),
            ],
            "parallel.zero_secondary_ranks",
        ),
    ],
)
def test_what_no_engine_runs_can_be_planned_and_not_started(overrides: list[str], key: str) -> None:
    assert compose([*MAI1, *overrides], to_plan=True)
    error: Any = refused(*overrides, to_plan=False)
    assert error.key == key
    assert "no engine can run it yet" in error.reason

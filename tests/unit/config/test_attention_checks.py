"""A kernel of attention is refused where it has none, with one that does."""

import pytest

from training.config.load import compose
from training.errors import ConfigError

H100 = [
    "cluster=azure_nd_h100_v5",
    "cluster.num_nodes=1",
    "parallel=zero3",
    "precision=bf16",
    "stages.pretrain.global_batch_sequences=32",
]


@pytest.mark.parametrize("wanted", ["auto", "sdpa", "flex", "flash"])
def test_on_accelerators_in_bf16_every_one_can_be_chosen(wanted: str) -> None:
    assert compose([*H100, f"parallel.attention={wanted}"]).parallel.attention == wanted


@pytest.mark.parametrize(
    ("overrides", "reason", "remedy"),
    [
        (["parallel=zero3", "parallel.attention=flex"], "the device is cpu", "parallel.attention=auto chooses"),
        (["parallel=zero3", "parallel.attention=flash"], "the device is cpu", "parallel.attention=sdpa"),
        (
            [*H100, "precision=fp32", "parallel.attention=flash"],
            "no kernels for precision=fp32",
            "parallel.attention=flex has, or precision=bf16",
        ),
        (
            [*H100, "model.head_size=320", "parallel.attention=flash"],
            "up to a head size of 256, and the model has 320",
            "parallel.attention=flex has one",
        ),
    ],
)
def test_what_has_no_kernel_is_refused_with_what_has(overrides: list[str], reason: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key == "parallel.attention"
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


def test_the_refusal_names_the_layout_of_the_training_stage_that_has_it() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=demo", "parallel@stages.anneal.parallel=zero3", "stages.anneal.parallel.attention=flex"])
    assert caught.value.key == "stages.anneal.parallel.attention"


@pytest.mark.parametrize("number", ["0", "-4"])
def test_a_chunk_of_the_loss_has_tokens(number: str) -> None:
    with pytest.raises(ConfigError, match="loss_chunk_tokens"):
        compose([f"parallel.loss_chunk_tokens={number}"])

"""Multi-token prediction: what its blocks learn from, where they stand, and that nothing else feels them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.models.configs import model
from training.config.load import compose
from training.config.model_schema import ExpertsConfig, ModelConfig, PredictionConfig
from training.config.parameter_names import parameter_names
from training.data.batch import MicroBatch
from training.errors import ConfigError
from training.models.cut import cut
from training.models.decoder import Decoder, decoder_layers
from training.models.learning import LaterTokens, LearningPass, learning, summed_losses
from training.models.loss import IGNORED_LABEL
from training.models.sizes import layer_costs, num_parameters

EXPERTS = ExpertsConfig(num_experts=4, experts_per_token=2, expert_ffn_size=40)
MODELS = {
    "dense": model(prediction=PredictionConfig(num_blocks=2)),
    "tied": model(prediction=PredictionConfig(), tied_embeddings=True),
    "experts": model(prediction=PredictionConfig(num_blocks=2), experts=EXPERTS),
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_names_and_sizes_are_those_of_the_built_model(config: ModelConfig) -> None:
    built = Decoder(decoder_layers(config, seed=0))
    assert parameter_names(config) == [name for name, _ in built.canonical_parameters()]
    assert num_parameters(config) == sum(p.numel() for p in built.parameters())
    assert len(layer_costs(config, 8)) == len(built.names)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_outside_of_training_the_model_is_the_one_without_them(config: ModelConfig) -> None:
    ids_BT = torch.randint(0, config.vocab_size, (2, 9))
    plain = Decoder(decoder_layers(replace(config, prediction=None), seed=5))
    assert torch.equal(Decoder(decoder_layers(config, seed=5))(ids_BT), plain(ids_BT))


@given(num_tokens=st.integers(2, 12), depth=st.integers(1, 3), data=st.data())
def test_a_depth_knows_the_token_so_far_ahead_and_predicts_the_one_after(
    num_tokens: int, depth: int, data: st.DataObject
) -> None:
    depth = min(depth, num_tokens - 1)
    documents = data.draw(st.lists(st.integers(0, 1), min_size=num_tokens, max_size=num_tokens))
    documents_BT = torch.tensor([documents]).cumsum(-1)
    text = torch.arange(100, 101 + num_tokens)[None]
    labels_BT = text[:, 1:].masked_fill(torch.arange(num_tokens) == 0, IGNORED_LABEL)
    batch = MicroBatch(input_ids_BT=text[:, :-1], labels_BT=labels_BT, documents_BT=documents_BT)
    later = batch.with_later_tokens(depth)
    assert later.later_ids_KBT is not None
    assert later.later_labels_KBT is not None
    for place in range(num_tokens):
        ahead = place + depth
        is_there = ahead < num_tokens and documents_BT[0, place] == documents_BT[0, ahead]
        assert later.later_ids_KBT[-1, 0, place] == (text[0, ahead] if ahead < num_tokens else 0)
        assert later.later_labels_KBT[-1, 0, place] == (labels_BT[0, ahead] if is_there else IGNORED_LABEL)
    parts = [later.part_of_sequences(part, num_tokens) for part in range(num_tokens)]
    assert torch.equal(
        torch.cat([part.later_ids_KBT for part in parts if part.later_ids_KBT is not None], -1), later.later_ids_KBT
    )


def test_their_losses_join_with_their_weight_and_chunks_change_nothing() -> None:
    config = MODELS["dense"]
    decoder = Decoder(decoder_layers(config, seed=1))
    ids_BT = torch.randint(0, config.vocab_size, (2, 9))
    batch = MicroBatch(input_ids_BT=ids_BT, labels_BT=ids_BT.roll(-1, 1)).with_later_tokens(2)
    assert batch.later_ids_KBT is not None
    assert batch.later_labels_KBT is not None
    later = LaterTokens(ids_KBT=batch.later_ids_KBT, labels_KBT=batch.later_labels_KBT, weight=0.25)
    found = []
    for at_once in (1000, 5):
        this = LearningPass(labels_BT=batch.labels_BT, loss_chunk_tokens=at_once, later=later)
        with learning(this):
            losses = summed_losses(decoder(ids_BT), this)
        assert losses.shape == (3,)
        assert this.total(losses).item() == pytest.approx((losses[0] + 0.25 * (losses[1] + losses[2])).item())
        found.append(losses.tolist())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_in_a_pipeline_they_stay_with_the_output_projection() -> None:
    words = ["parallel=pipeline_zero3", "+model.prediction={num_blocks: 2}", "cluster.processes_per_node=4"]
    for by_hand in ([], ["parallel.layers_per_pipeline_stage=[1,3]"]):
        config = compose([*words, *by_hand])
        parts = cut(config, next(iter(config.stages)))
        num_layers = len(layer_costs(config.model, 1))
        assert [part.stop for part in parts][-1] == num_layers
        assert set(range(num_layers - 3, num_layers)) <= set(parts[-1])


def test_deepspeeds_pipeline_engine_cannot_run_them() -> None:
    words = ["parallel=pipeline", "+model.prediction={}", "cluster.processes_per_node=2"]
    with pytest.raises(ConfigError, match=r"(?s)model\.prediction.*pipeline_engine=autarky can"):
        compose(words)

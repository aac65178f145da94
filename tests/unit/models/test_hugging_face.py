import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from tests.unit.models.configs import KINDS, LLAMA3_SCALING, model
from tests.unit.models.transformers_llama import llama
from training.config.model_schema import ModelConfig, RopeScaling
from training.errors import ConfigError
from training.models.hugging_face import LLAMA, differences, from_config_json, to_config_json
from training.models.shapes import parameter_shapes


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    kv_heads, per_kv, half_head = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 64))
    scaling = st.builds(
        RopeScaling,
        factor=st.floats(1.0, 64.0),
        low_freq_factor=st.floats(0.1, 1.0),
        high_freq_factor=st.floats(1.5, 8.0),
        original_max_sequence_length=st.integers(1, 10_000),
    )
    return ModelConfig(
        vocab_size=draw(st.integers(1, 200_000)),
        hidden_size=kv_heads * per_kv * 2 * half_head,
        num_layers=draw(st.integers(1, 200)),
        num_heads=kv_heads * per_kv,
        num_kv_heads=kv_heads,
        ffn_size=draw(st.integers(1, 60_000)),
        max_sequence_length=draw(st.integers(1, 200_000)),
        rope_theta=draw(st.floats(1.0, 1e8)),
        rope_scaling=draw(st.none() | scaling),
        norm_epsilon=draw(st.floats(1e-9, 0.1)),
        tied_embeddings=draw(st.booleans()),
        init_std=draw(st.floats(0.001, 1.0)),
    )


@given(models())
def test_a_model_written_as_config_json_reads_as_the_same_model(config: ModelConfig) -> None:
    written = json.loads(json.dumps(to_config_json(config, LLAMA)))
    assert from_config_json(written) == config
    assert differences(config, written) == []
    # Either form of the rotary settings is enough: 5.x reads the first, programs from before only the second.
    new = {key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")}
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert from_config_json(new) == from_config_json(old) == config


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model_and_its_own_file_is_understood(kind: str) -> None:
    config = replace(KINDS[kind], init_std=0.02)
    theirs = llama(config).config
    assert from_config_json(json.loads(theirs.to_json_string(use_diff=False))) == config
    assert from_config_json(json.loads(theirs.to_json_string(use_diff=True))) == config
    from_ours = LlamaConfig.from_dict(to_config_json(config, LLAMA))
    for name in LLAMA.fields.values():
        assert getattr(from_ours, name) == getattr(theirs, name), name
    assert from_ours.rope_parameters == theirs.rope_parameters


def test_keys_that_are_left_out_mean_what_they_mean_in_transformers() -> None:
    sizes = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    read, theirs = from_config_json(sizes), LlamaConfig.from_dict(sizes)
    assert read.num_kv_heads == theirs.num_key_value_heads
    assert read.rope_theta == theirs.to_dict()["rope_parameters"]["rope_theta"]
    assert read.norm_epsilon == theirs.rms_norm_eps
    assert read.tied_embeddings == theirs.tie_word_embeddings
    assert read.init_std == theirs.initializer_range


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown family": ({"model_type": "gpt2"}, ["model_type", "gpt2", "llama"]),
    "no family": ({"model_type": None}, ["model_type", "llama"]),
    "other head": ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
    "code": (
        {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
        ["auto_map", "none that comes with weights ever runs"],
    ),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
    "attention bias": ({"attention_bias": True}, ["attention_bias", "True"]),
    "mlp bias": ({"mlp_bias": True}, ["mlp_bias"]),
    "head size": ({"head_dim": 16}, ["head_dim", "16", "8"]),
    "partial rotation": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["rope_type", "yarn"]),
    "old name of a type": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_type", "linear"]),
    "rope per layer type": ({"rope_parameters": {"full": {}}}, ["rope_parameters"]),
    "half a scaling": ({"rope_scaling": {"rope_type": "llama3"}}, ["rope_scaling.factor"]),
    "no width": ({"hidden_size": None}, ["hidden_size"]),
    "text for a number": ({"hidden_size": "48"}, ["hidden_size", "48"]),
    "no heads": ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
    "heads that do not divide": ({"num_key_value_heads": 4}, ["num_key_value_heads=4"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_decoder_does_not_compute_is_refused_by_name(case: str) -> None:
    change, texts = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        from_config_json(to_config_json(model(), LLAMA) | change)
    for text in texts:
        assert text in str(error.value)


def test_every_difference_is_named_with_both_values() -> None:
    other = model(hidden_size=96, rope_theta=10_000.0, rope_scaling=LLAMA3_SCALING, init_std=1.0, dropout=0.5)
    lines = differences(other, to_config_json(model(), LLAMA))
    assert [line.split()[0] for line in lines] == ["hidden_size", "rope_theta", "rope_scaling"]
    assert lines[0] == "hidden_size is 48, model.hidden_size is 96"


def test_a_number_that_went_through_float32_is_the_same_number() -> None:
    config = to_config_json(model(norm_epsilon=1e-5), LLAMA) | {"rms_norm_eps": 9.999999747378752e-06}
    assert differences(model(norm_epsilon=1e-5), config) == []
    assert differences(model(norm_epsilon=1e-5), config | {"rms_norm_eps": 1.00001e-5})


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_transformers(kind: str) -> None:
    theirs = {name: tuple(p.shape) for name, p in llama(KINDS[kind]).named_parameters()}
    shapes = parameter_shapes(KINDS[kind])
    assert {LLAMA.key_of(name): shape for name, shape in shapes.items()} == theirs
    assert not any(LLAMA.is_buffer(key) for key in theirs)


def test_shapes_take_no_memory() -> None:
    shapes = parameter_shapes(model(vocab_size=10**9, hidden_size=6 * 10**5))
    assert shapes["lm_head.weight"] == (10**9, 6 * 10**5)
    assert torch.empty(0).device.type == "cpu"


def test_old_buffers_are_known_in_every_layer() -> None:
    assert LLAMA.is_buffer("model.layers.17.self_attn.rotary_emb.inv_freq")
    assert not LLAMA.is_buffer("model.layers.17.self_attn.rotary_emb.weight")
    assert LLAMA.key_of("model.layers.17.mlp.up_proj.weight") == "model.layers.17.mlp.up_proj.weight"

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from tests.unit.models.configs import (
    ALL_KINDS,
    KINDS,
    LLAMA3_SCALING,
    OTHER_KINDS,
    SIGMOID_EXPERTS,
    SOFTMAX_EXPERTS,
    deepseek,
    model,
)
from tests.unit.models.transformers_models import transformers_model
from training.config.model_schema import (
    ExpertsConfig,
    LatentAttentionConfig,
    ModelConfig,
    RopeScaling,
    RouterScore,
    YarnScaling,
)
from training.errors import ConfigError
from training.models.hugging_face import differences, family_for, from_config_json, to_config_json
from training.models.hugging_face_families import FAMILIES, LLAMA, Family, value_of
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
    yarn = st.builds(
        YarnScaling,
        factor=st.floats(1.0, 64.0),
        original_max_sequence_length=st.integers(64, 10_000),
        beta_fast=st.floats(8.5, 64.0),
        beta_slow=st.floats(0.5, 8.0),
        mscale=st.none() | st.floats(0.0, 2.0),
        mscale_all_dim=st.none() | st.floats(0.0, 2.0),
    )
    hidden_size, num_layers = kv_heads * per_kv * 2 * half_head, draw(st.integers(2, 200))
    family = draw(st.sampled_from(sorted(FAMILIES)))
    wide = draw(st.none() | st.integers(1, 64).map(lambda half: 2 * half).filter(lambda size: size != 2 * half_head))
    rope: dict[str, Any] = draw(
        st.sampled_from([{}, {"rope_scaling": draw(scaling)}, {"yarn": draw(yarn)}]),
    )
    config = ModelConfig(
        vocab_size=draw(st.integers(1, 200_000)),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=kv_heads * per_kv,
        num_kv_heads=kv_heads,
        head_size=wide,
        qk_norm=family.startswith("qwen3"),
        ffn_size=draw(st.integers(1, 60_000)),
        max_sequence_length=draw(st.integers(1, 200_000)),
        rope_theta=draw(st.floats(1.5, 1e8)),
        norm_epsilon=draw(st.floats(1e-9, 0.1)),
        tied_embeddings=draw(st.booleans()),
        init_std=draw(st.floats(0.001, 1.0)),
        **rope,
    )
    if family in ("llama", "qwen3"):
        return config
    experts = ExpertsConfig(
        num_experts=(groups := draw(st.integers(1, 8))) * draw(st.integers(8, 32)),
        experts_per_token=draw(st.integers(1, 8)),
        expert_ffn_size=draw(st.integers(1, 9_000)),
    )
    if family == "mixtral":
        return replace(config, experts=experts, ffn_size=experts.expert_ffn_size)
    experts = replace(
        experts, num_dense_layers=draw(st.integers(0, num_layers - 1)), normalize_weights=draw(st.booleans())
    )
    if family == "qwen3_moe":
        return replace(config, experts=experts)
    return replace(
        config,
        head_size=None,
        num_kv_heads=config.num_heads,
        latent_attention=LatentAttentionConfig(
            kv_rank=draw(st.integers(1, 600)),
            query_rank=draw(st.none() | st.integers(1, 2000)),
            head_size=draw(st.integers(1, 200)),
            rope_head_size=2 * draw(st.integers(1, 60)),
            value_head_size=draw(st.integers(1, 200)),
        ),
        experts=replace(
            experts,
            score=RouterScore.sigmoid,
            num_shared_experts=draw(st.integers(1, 4)),
            weight_scale=draw(st.floats(0.1, 4.0)),
            num_groups=groups,
            groups_per_token=draw(st.integers(1, groups)),
            bias_update_rate=0.001,
        ),
    )


@given(models())
def test_a_model_written_as_config_json_reads_as_the_same_model(config: ModelConfig) -> None:
    written = json.loads(json.dumps(to_config_json(config, family_for(config))))
    assert from_config_json(written) == config
    assert differences(config, written) == []
    # Either form of the rotary settings is enough: 5.x reads the first, programs from before only the second.
    new = {key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")}
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert from_config_json(new) == from_config_json(old) == config


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_transformers_reads_the_same_model_and_its_own_file_is_understood(kind: str) -> None:
    config = replace(ALL_KINDS[kind], init_std=0.02)
    family, theirs = family_for(config), transformers_model(config).config
    assert family.architecture == type(transformers_model(config)).__name__
    assert from_config_json(json.loads(theirs.to_json_string(use_diff=False))) == config
    assert from_config_json(json.loads(theirs.to_json_string(use_diff=True))) == config
    from_ours = type(theirs).from_dict(to_config_json(config, family))
    known = [key for key in family.fixed if hasattr(theirs, key)]  # the others are for DeepSeek's own code
    for key in {*family.fields.values(), *known} - {"head_dim"}:
        assert getattr(from_ours, key) == getattr(theirs, key), key
    assert (getattr(theirs, "head_dim", None) or config.attention_head_size) == from_ours.head_dim
    assert from_ours.rope_parameters == theirs.rope_parameters


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_keys_that_are_left_out_mean_what_they_mean_in_transformers(family: Family) -> None:
    sizes = {
        "model_type": family.model_type,
        "vocab_size": 96,
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    read, theirs = from_config_json(sizes), AutoConfig.for_model(**sizes)
    for path, key in family.fields.items():
        value = getattr(theirs, key, None)
        if path == "head_size":
            assert read.attention_head_size == (value or 64)
        elif key == "mlp_only_layers":
            assert value == []
            assert value_of(read, path) == 0
        else:
            assert value_of(read, path) == value, key
    for key, value in family.fixed.items():
        assert getattr(theirs, key, value) == value, key
    assert read.rope_theta == theirs.to_dict()["rope_parameters"]["rope_theta"]


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
    "odd heads": ({"head_dim": 15}, ["head_dim", "15", "even"]),
    "partial rotation": ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["rope_type", "dynamic", "yarn"]),
    "yarn with its own amplitude": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.1}},
        ["attention_factor=1.1", "null"],
    ),
    "yarn with parts of pairs": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
        ["truncate", "True"],
    ),
    "half a yarn": ({"rope_scaling": {"rope_type": "yarn"}}, ["yarn.factor"]),
    "a key of another scaling": (
        {"rope_scaling": {"rope_type": "llama3", "mscale_all_dim": 1.0}},
        ["rope_parameters", "mscale_all_dim"],
    ),
    "old name of a type": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_type", "linear"]),
    "rope per layer type": ({"rope_parameters": {"full": {}}}, ["rope_parameters"]),
    "half a scaling": ({"rope_scaling": {"rope_type": "llama3"}}, ["rope_scaling.factor"]),
    "no width": ({"hidden_size": None}, ["hidden_size"]),
    "text for a number": ({"hidden_size": "48"}, ["hidden_size", "48"]),
    "no heads": ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
    "heads that do not divide": ({"num_key_value_heads": 4}, ["num_key_value_heads=4"]),
}


REFUSED_OF: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a window": ("mixtral", {"sliding_window": 4096}, ["sliding_window=4096", "null"]),
    "noise": ("mixtral", {"router_jitter_noise": 0.1}, ["router_jitter_noise"]),
    "two numbers of experts": ("mixtral", {"num_experts": 8}, ["num_local_experts=6", "num_experts is 8"]),
    "more experts of a token than there are": (
        "mixtral",
        {"num_experts_per_tok": 9},
        ["num_experts_per_tok=9", "6 experts"],
    ),
    "a window of qwen": ("qwen3", {"use_sliding_window": True}, ["use_sliding_window"]),
    "blocks with a window": (
        "qwen3",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        ["layer_types", "full_attention"],
    ),
    "bias": ("qwen3_moe", {"attention_bias": True}, ["attention_bias"]),
    "every other block": ("qwen3_moe", {"decoder_sparse_step": 2}, ["decoder_sparse_step=2", "must be 1"]),
    "a dense block in the middle": ("qwen3_moe", {"mlp_only_layers": [1]}, ["mlp_only_layers=[1]", "first blocks"]),
    "all blocks dense": ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, ["mlp_only_layers", "none would be left"]),
    "other choice of experts": ("deepseek_v3", {"topk_method": "greedy"}, ["topk_method=greedy", "noaux_tc"]),
    "other scores": ("deepseek_v3", {"scoring_func": "softmax"}, ["scoring_func=softmax", "sigmoid"]),
    "experts in every other block": ("deepseek_v3", {"moe_layer_freq": 2}, ["moe_layer_freq"]),
    "pairs apart": ("deepseek_v3", {"rope_interleave": False}, ["rope_interleave"]),
    "few keys": ("deepseek_v3", {"num_key_value_heads": 2}, ["num_key_value_heads=2", "latent attention"]),
    "a derived size": ("deepseek_v3", {"qk_head_dim": 21}, ["qk_head_dim=21", "must be 20"]),
    "groups that do not divide": ("deepseek_v3", {"n_group": 3}, ["n_group=3", "evenly"]),
    "fp8": (
        "deepseek_v3",
        {"quantization_config": {"quant_method": "fp8"}},
        ["quantization_config", "as DeepSeek's own files are", "convert them to bf16"],
    ),
}


@pytest.mark.parametrize("case", REFUSED_OF)
def test_what_our_decoder_does_not_compute_of_other_families_is_refused_by_name(case: str) -> None:
    kind, change, texts = REFUSED_OF[case]
    config = ALL_KINDS[kind]
    with pytest.raises(ConfigError) as error:
        from_config_json(to_config_json(config, FAMILIES[kind]) | change)
    for text in texts:
        assert text in str(error.value)


def test_the_number_of_experts_is_read_by_either_name() -> None:
    config = ALL_KINDS["qwen3_moe"]
    written = to_config_json(config, FAMILIES["qwen3_moe"])
    number = written.pop("num_experts")
    assert from_config_json(written | {"num_local_experts": number}) == replace(config, init_std=0.1)


EXPORTED_AS = [*((kind, kind.split()[0]) for kind in OTHER_KINDS), *((kind, "llama") for kind in KINDS)]


@pytest.mark.parametrize(("kind", "model_type"), EXPORTED_AS)
def test_a_model_chooses_its_family(kind: str, model_type: str) -> None:
    assert family_for(ALL_KINDS[kind]).model_type == model_type


OF_NO_FAMILY = {
    "capacity": (deepseek(experts=replace(SIGMOID_EXPERTS, capacity_factor=1.5)), "deepseek_v3", ["capacity_factor"]),
    "no bias": (deepseek(experts=replace(SIGMOID_EXPERTS, bias_update_rate=0)), "deepseek_v3", ["bias_update_rate"]),
    "softmax": (deepseek(experts=replace(SIGMOID_EXPERTS, score="softmax")), "deepseek_v3", ["experts.score=softmax"]),
    "no shared": (
        deepseek(experts=replace(SIGMOID_EXPERTS, num_shared_experts=0)),
        "deepseek_v3",
        ["num_shared_experts=0", "at least 1"],
    ),
    "a bias": (
        model(qk_norm=True, experts=replace(SOFTMAX_EXPERTS, bias_update_rate=0.01)),
        "qwen3_moe",
        ["bias_update_rate=0.01", "no bias"],
    ),
    "dense first, without norms of heads": (
        model(experts=replace(SOFTMAX_EXPERTS, num_dense_layers=1)),
        "mixtral",
        ["num_dense_layers=1"],
    ),
    "shared and normed": (
        model(qk_norm=True, experts=replace(SOFTMAX_EXPERTS, num_shared_experts=1, weight_scale=2.0)),
        "qwen3_moe",
        ["num_shared_experts=1", "weight_scale=2.0"],
    ),
    "latent and dense": (deepseek(experts=None), "llama", ["latent_attention=given", "LlamaForCausalLM has none"]),
}


@pytest.mark.parametrize("case", OF_NO_FAMILY)
def test_a_model_of_no_family_is_told_what_stands_against_the_nearest(case: str) -> None:
    config, nearest, texts = OF_NO_FAMILY[case]
    with pytest.raises(ConfigError, match=f"the nearest is {nearest}") as error:
        family_for(config)
    for text in texts:
        assert text in str(error.value)


def test_how_a_model_is_trained_is_no_difference() -> None:
    config = deepseek()
    trained = replace(
        SIGMOID_EXPERTS,
        bias_update_rate=0.1,
        balance_loss=0.1,
        z_loss=0.1,
        balance_scope="micro_batch",
        capacity_factor=2,
    )
    written = to_config_json(config, FAMILIES["deepseek_v3"])
    assert differences(replace(config, experts=trained, dropout=0.1), written) == []
    without_bias = differences(replace(config, experts=replace(trained, bias_update_rate=0.0)), written)
    assert without_bias == ["experts.bias_update_rate is given, model.experts.bias_update_rate is 0.0"]
    wider = replace(config, experts=replace(SIGMOID_EXPERTS, num_groups=2), ffn_size=81)
    assert differences(wider, written) == [
        "intermediate_size is 80, model.ffn_size is 81",
        "n_group is 4, model.experts.num_groups is 2",
    ]
    no_dense = replace(SIGMOID_EXPERTS, num_dense_layers=0)
    written = to_config_json(deepseek(experts=no_dense), FAMILIES["deepseek_v3"])
    assert differences(deepseek(experts=no_dense, ffn_size=81), written) == [], "no layer has that size"
    assert differences(model(head_size=8), to_config_json(model(), LLAMA)) == [], "48 / 6"
    assert differences(model(), written)[0].startswith("num_key_value_heads is 6")
    assert "experts is given, model.experts is null" in differences(model(), written)


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
    theirs = {name: tuple(p.shape) for name, p in transformers_model(KINDS[kind]).named_parameters()}
    shapes = parameter_shapes(KINDS[kind])
    assert dict(part for name, shape in shapes.items() for part in LLAMA.parts_of(name, shape)) == theirs
    assert not any(LLAMA.is_buffer(key) for key in theirs)


def test_shapes_take_no_memory() -> None:
    shapes = parameter_shapes(model(vocab_size=10**9, hidden_size=6 * 10**5))
    assert shapes["lm_head.weight"] == (10**9, 6 * 10**5)
    assert torch.empty(0).device.type == "cpu"


def test_old_buffers_are_known_in_every_layer() -> None:
    assert LLAMA.is_buffer("model.layers.17.self_attn.rotary_emb.inv_freq")
    assert not LLAMA.is_buffer("model.layers.17.self_attn.rotary_emb.weight")
    name = "model.layers.17.mlp.up_proj.weight"
    assert LLAMA.parts_of(name, (2, 3)) == [(name, (2, 3))]
    w1 = "model.layers.17.block_sparse_moe.experts.{}.w1.weight"
    stack = FAMILIES["mixtral"].parts_of("model.layers.17.mlp.experts.gate_proj", (2, 5, 3))
    assert stack == [(w1.format(0), (5, 3)), (w1.format(1), (5, 3))]

"""Model families of Hugging Face as tables: which field of config.json is which of ours, which weight is called what.

No torch. Another family is another table. What is not in a table and changes the numbers is refused, so a model either
computes here what it computes in transformers, or is not taken.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.config.checks import check_architecture
from training.config.model_schema import ModelConfig, RopeScaling
from training.config.typed import to_model_config
from training.errors import ConfigError

_REMEDY = "only models that Autarky's decoder computes exactly as transformers does can be taken"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One `model_type` of transformers. In names and keys `{layer}` stands for the number of a block."""

    model_type: str
    """Of config.json."""
    architecture: str
    """Class of transformers that the weights are for."""
    fields: Mapping[str, str]
    """Field of ModelConfig -> key of config.json."""
    defaults: Mapping[str, Any]
    """What transformers takes for a key that config.json leaves out."""
    fixed: Mapping[str, Any]
    """Keys that change the numbers -> the only value with which they are ours; also what a missing one means."""
    weights: Mapping[str, str]
    """Canonical parameter name -> key in the safetensors files."""
    tied: Mapping[str, str]
    """Key that a model with tied embeddings may repeat -> the key that it repeats."""
    buffers: frozenset[str]
    """Keys that old files carry though they follow from config.json; left out."""

    def key_of(self, parameter: str) -> str:
        """Return the key of a parameter in the files."""
        pattern, layer = _pattern(parameter)
        return self.weights[pattern].replace("{layer}", layer)

    def is_buffer(self, key: str) -> bool:
        """Return whether a key of the files is one that is left out."""
        return _pattern(key)[0] in self.buffers


_BLOCK = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "ffn_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
        "norm_epsilon": "rms_norm_eps",
        "tied_embeddings": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    defaults={"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02},
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    # Canonical names are Llama's (docs/adr/0004), so this one table says the same twice.
    weights={
        "model.embed_tokens.weight": "model.embed_tokens.weight",
        **{f"model.layers.{{layer}}.{part}.weight": f"model.layers.{{layer}}.{part}.weight" for part in _BLOCK},
        "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    },
    tied={"lm_head.weight": "model.embed_tokens.weight"},
    buffers=frozenset({"model.layers.{layer}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"}),
)

FAMILIES = {family.model_type: family for family in (LLAMA,)}


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the table for a config.json.

    Raises:
        ConfigError: it is of no known family, or needs code or number formats of its own.
    """
    for key, reason in (
        ("auto_map", "names Python code that would have to run; none that comes with weights ever runs here"),
        ("quantization_config", "the weights are quantised; fp32, bf16 and fp16 are read"),
    ):
        if config.get(key) is not None:
            raise _refusal(key, config[key], reason)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise _refusal("model_type", model_type, "is no known family", f"known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    architectures = config.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
        raise _refusal("architectures", architectures, f"the weights must be of {family.architecture}")
    return family


def from_config_json(config: Mapping[str, Any]) -> ModelConfig:
    """Return our description of the model of a config.json; it has no dropout.

    Raises:
        ConfigError: the model is none that our decoder computes, or a field is missing or senseless.
    """
    family = family_of(config)
    for key, value in family.fixed.items():
        if (given := config.get(key)) is not None and given != value:
            raise _refusal(key, given, f"must be {value}")
    values = {ours: _given(config, key, family) for ours, key in family.fields.items()}
    if values["num_kv_heads"] is None:
        values["num_kv_heads"] = values["num_heads"]
    for ours, value in values.items():
        if value is None:
            raise _refusal(family.fields[ours], "null", "has no value", "give the directory's own, whole config.json")
    try:
        model = to_model_config(values | _rope(config))
        check_architecture(model)
    except ConfigError as error:
        key = error.key.removeprefix("model.")
        raise _refusal(family.fields.get(key, key), error.given, error.reason) from error
    head_size = config.get("head_dim")
    if head_size is not None and head_size != model.hidden_size // model.num_heads:
        reason = f"must be hidden_size / num_attention_heads = {model.hidden_size // model.num_heads}"
        raise _refusal("head_dim", head_size, reason)
    return model


def to_config_json(model: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the part of a config.json that describes the model, in the form of transformers 5.x and the one before.

    A program that knows only one of the two would else compute with a default base frequency, without a word.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := model.rope_scaling) is not None:
        rope = {"rope_type": "llama3"} | {_ROPE[name]: value for name, value in asdict(scaling).items()}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: getattr(model, ours) for ours, key in family.fields.items()},
        **family.fixed,
        "head_dim": model.hidden_size // model.num_heads,
        "rope_parameters": rope | {"rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "rope_scaling": rope if model.rope_scaling is not None else None,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def differences(model: ModelConfig, config: Mapping[str, Any]) -> list[str]:
    """Return one line for each field in which a config.json describes another model, with both values.

    init_std and dropout say how a model is trained, not which it is, and are not compared.
    """
    family, theirs = family_of(config), from_config_json(config)
    return [
        f"{family.fields.get(name, name)} is {getattr(theirs, name)}, model.{name} is {value}"
        for name in asdict(model)
        if name not in ("init_std", "dropout") and not _same(value := getattr(model, name), getattr(theirs, name))
    ]


_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_sequence_length": "original_max_position_embeddings",
}
"""Field of RopeScaling -> key of config.json."""


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope_theta and rope_scaling as transformers 5.23 reads them (RotaryEmbeddingConfigMixin)."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}  # in this order
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE.values()}
    if not isinstance(rope, Mapping) or not known.issuperset(rope):
        raise _refusal("rope_parameters", rope, f"only {', '.join(sorted(known))} are understood")
    for section in (config, rope):
        if section.get("partial_rotary_factor") not in (None, 1.0):
            raise _refusal("partial_rotary_factor", section["partial_rotary_factor"], "must be 1.0")
    theta = rope.get("rope_theta")
    theta = theta if theta is not None else config.get("rope_theta")
    values: dict[str, Any] = {"rope_theta": theta if theta is not None else 10_000.0, "rope_scaling": None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise _refusal("rope_type", kind, "must be default or llama3")
    if kind == "llama3":
        top = config.get("original_max_position_embeddings")
        length = top if top is not None else rope.get("original_max_position_embeddings")
        length = length if length is not None else config.get("max_position_embeddings")
        scaling = {name: rope.get(key) for name, key in _ROPE.items()} | {"original_max_sequence_length": length}
        values["rope_scaling"] = scaling
    return values


def _given(config: Mapping[str, Any], key: str, family: Family) -> Any:
    value = config.get(key)
    return value if value is not None else family.defaults.get(key)


def _pattern(name: str) -> tuple[str, str]:
    """Return a name with its first whole number replaced by {layer}, and that number ("" if there is none)."""
    match = re.search(r"(?<=\.)(?:0|[1-9][0-9]*)(?=\.)", name)
    return (f"{name[: match.start()]}{{layer}}{name[match.end() :]}", match[0]) if match else (name, "")


def _same(ours: Any, theirs: Any) -> bool:
    """Compare; floats up to what float32 can tell apart, which is how some converters write them."""
    if isinstance(ours, RopeScaling) and isinstance(theirs, RopeScaling):
        return all(_same(a, b) for a, b in zip(asdict(ours).values(), asdict(theirs).values(), strict=True))
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-7)
    return ours == theirs


def _refusal(key: str, given: object, reason: str, remedy: str = _REMEDY) -> ConfigError:
    return ConfigError(f"config.json: {key}", given, reason, remedy)

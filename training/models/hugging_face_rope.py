"""Rotary settings of a config.json, in the form of transformers 5.x and the one before. No torch."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from training.config.model_schema import ModelConfig
from training.models.hugging_face_families import refusal

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_sequence_length": "original_max_position_embeddings",
}
"""Field of RopeScaling -> key of config.json."""
_YARN = {
    "factor": "factor",
    "original_max_sequence_length": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}
"""Field of YarnScaling -> key of config.json."""
_KEYS = {"default": {}, "llama3": _LLAMA3, "yarn": _YARN}
_FIXED = {"partial_rotary_factor": 1.0, "truncate": True, "attention_factor": None}
"""Keys that change the numbers -> the only value with which they are ours; also what a missing one means."""


def rope_to_config_json(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of a config.json that describe a model's rotary positions.

    Both forms: a program that knows only one of them would else compute with default frequencies, without a word.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if model.rope_scaling is not None:
        rope = {"rope_type": "llama3"} | {_LLAMA3[name]: value for name, value in asdict(model.rope_scaling).items()}
    elif model.yarn is not None:
        given = {_YARN[name]: value for name, value in asdict(model.yarn).items() if value is not None}
        rope = {"rope_type": "yarn"} | given
    return {
        "rope_parameters": rope | {"rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "rope_scaling": rope if rope["rope_type"] != "default" else None,
    }


def rope_from_config_json(config: Mapping[str, Any], default_theta: float) -> dict[str, Any]:
    """Return rope_theta, rope_scaling and yarn as transformers 5.23 reads them (RotaryEmbeddingConfigMixin).

    Raises:
        ConfigError: positions are rotated in another way than ours.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}  # in this order
    if not isinstance(rope, Mapping):
        raise refusal("rope_parameters", rope, "is no object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KEYS:
        raise refusal("rope_type", kind, f"must be {', '.join(_KEYS)}")
    keys = _KEYS[kind]
    known = {"rope_type", "type", "rope_theta", *_FIXED, *keys.values()}
    if not known.issuperset(rope):
        raise refusal("rope_parameters", dict(rope), f"only {', '.join(sorted(known))} are understood")
    beside = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    for section in (beside, rope):
        for key, value in _FIXED.items():
            if section.get(key) not in (None, value):
                raise refusal(key, section[key], "must be null" if value is None else f"must be {value}")
    theta = next((t for t in (rope.get("rope_theta"), config.get("rope_theta")) if t is not None), default_theta)
    values: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None, "yarn": None}
    if kind == "default":
        return values
    scaling = {name: rope[key] for name, key in keys.items() if key in rope}
    scaling["original_max_sequence_length"] = _original_length(config, rope)
    if kind == "llama3":
        return values | {"rope_scaling": dict.fromkeys(keys) | scaling}
    unset = [name for name in ("beta_fast", "beta_slow") if not scaling.get(name, True)]  # transformers: default too
    return values | {"yarn": {name: value for name, value in scaling.items() if name not in unset}}


def _original_length(config: Mapping[str, Any], rope: Mapping[str, Any]) -> Any:
    """Return the context before scaling: the key beside the section comes first, the whole context last."""
    given = (config.get(_LLAMA3["original_max_sequence_length"]), rope.get(_LLAMA3["original_max_sequence_length"]))
    return next((length for length in given if length is not None), config.get("max_position_embeddings"))

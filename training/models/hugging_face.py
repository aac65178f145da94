"""A config.json of Hugging Face -> our description of the model, and back. No torch.

The families are tables (training/models/hugging_face_families.py).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from typing import Any

from training.config.checks import check_architecture
from training.config.model_schema import ModelConfig
from training.config.typed import to_model_config
from training.errors import ConfigError
from training.models.hugging_face_families import FAMILIES, Family, refusal, value_of
from training.models.hugging_face_rope import rope_from_config_json, rope_to_config_json
from training.models.sizes import head_sizes

_BIAS_UPDATE_RATE = 0.001
"""Of a model that comes with router biases: DeepSeek-V3's (arXiv:2412.19437, section 4.2); config.json has none."""
_NULLABLE = ("head_size", "latent_attention.query_rank")
_NUMBER_LISTS = ("mlp_only_layers",)
"""Keys that list the blocks of which we have the number: the first ones."""
_ALIASES = {
    "num_experts": "num_local_experts",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_local_experts",
}
"""Key -> another name of it that transformers 5.23 reads, and writes for the first of these."""
_TRAINING_ONLY = (
    "init_std",
    "dropout",
    "experts.balance_loss",
    "experts.balance_scope",
    "experts.z_loss",
    "experts.capacity_factor",
)
"""Fields that say how a model is trained, not which it is."""

_LARGEST_SIZE = 2**53
"""Of any number in config.json: as far as numbers in JSON are exact everywhere."""


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the table for a config.json.

    Raises:
        ConfigError: it is of no known family, or needs code or number formats of its own.
    """
    for key, reason, remedy in (
        (
            "auto_map",
            "names Python code that would have to run; none that comes with weights ever runs here",
            "if transformers' own class computes the same model, say so by taking auto_map out of config.json",
        ),
        (
            "quantization_config",
            "the weights are quantised (as DeepSeek's own files are, in fp8); fp32, bf16 and fp16 are read",
            "convert them to bf16 first (DeepSeek's repository has fp8_cast_bf16.py for that)",
        ),
    ):
        if config.get(key) is not None:
            raise refusal(key, config[key], reason, remedy)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise refusal("model_type", model_type, "is no known family", f"known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    architectures = config.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
        raise refusal("architectures", architectures, f"the weights must be of {family.architecture}")
    return family


def family_for(model: ModelConfig) -> Family:
    """Return the family that a model can be exported as.

    Raises:
        ConfigError: none computes this model; the error names the nearest one and all that stands against it.
    """
    obstacles = {family.model_type: list(_obstacles(model, family)) for family in FAMILIES.values()}
    sections = ("model.experts", "model.latent_attention")  # whole parts of a model, further apart than any number
    nearest = min(
        obstacles, key=lambda name: (sum(key in sections for key, _, _ in obstacles[name]), len(obstacles[name]))
    )
    if not obstacles[nearest]:
        return FAMILIES[nearest]
    lines = [f"{key}={given} ({reason})" for key, given, reason in obstacles[nearest]]
    first, given, reason = obstacles[nearest][0]
    others = f"; also {', '.join(lines[1:])}" if lines[1:] else ""
    raise ConfigError(
        first,
        given,
        f"no family of transformers that we know computes this model; the nearest is {nearest}: {reason}{others}",
        f"families: {', '.join(FAMILIES)}; Autarky's own checkpoints hold every model",
    )


def from_config_json(config: Mapping[str, Any]) -> ModelConfig:
    """Return our description of the model of a config.json; it has no dropout and no losses of routers.

    Raises:
        ConfigError: the model is none that our decoder computes, or a field is missing or senseless.
    """
    for key, value in config.items():
        if isinstance(value, int) and value > _LARGEST_SIZE:  # torch cannot even name a shape with it
            raise refusal(key, value, f"is more than {_LARGEST_SIZE:,}")
    family = family_of(config)
    _check_fixed(config, family)
    values: dict[str, Any] = {}
    given = {ours: _given(config, key, family) for ours, key in family.fields.items()}
    if given["num_kv_heads"] is None:
        given["num_kv_heads"] = given["num_heads"]
    for ours, value in (dict(family.implied) | given).items():
        if value is None and ours in family.fields and ours not in _NULLABLE:
            raise refusal(family.fields[ours], "null", "has no value", "give the directory's own, whole config.json")
        section, _, name = ours.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    if family.has_router_bias:
        values["experts"]["bias_update_rate"] = _BIAS_UPDATE_RATE
    try:
        model = to_model_config(values | rope_from_config_json(config, family.default_rope_theta))
        check_architecture(model)
    except ConfigError as error:
        key = error.key.removeprefix("model.")
        if key == error.key:
            raise
        raise refusal(family.fields.get(key, key), error.given, error.reason) from error
    for key, size in _sizes_of_heads(model).items():
        if config.get(key) not in (None, size):
            raise refusal(key, config[key], f"must be {size}, which follows from the other sizes")
    is_usual = model.head_size is not None and model.head_size * model.num_heads == model.hidden_size
    return replace(model, head_size=None) if is_usual else model


def to_config_json(model: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the part of a config.json that describes the model of a family (`family_for`)."""
    values = {key: _plain(value_of(model, ours)) for ours, key in family.fields.items()}
    values |= {key: list(range(values[key])) for key in _NUMBER_LISTS if key in values}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **values,
        **family.fixed,
        **_sizes_of_heads(model),
        **rope_to_config_json(model),
        **({"num_nextn_predict_layers": 0} if family.predicts_further_tokens else {}),
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def differences(model: ModelConfig, config: Mapping[str, Any]) -> list[str]:
    """Return one line for each field in which a config.json describes another model, with both values.

    What says how a model is trained, not which it is, is not compared, nor a size that no layer has.
    """
    family, theirs = family_of(config), from_config_json(config)
    if (model.head_size or theirs.head_size) and model.latent_attention is None and theirs.latent_attention is None:
        model, theirs = (replace(x, head_size=x.attention_head_size) for x in (model, theirs))
    return [
        f"{family.fields.get(path, path)} is {_shown(value)}, model.{path} is {_shown(ours)}"
        for path, ours, value in _pairs(_comparable(model), _comparable(theirs))
        if not _same(ours, value)
    ]


def further_blocks(config: Mapping[str, Any], model: ModelConfig) -> range:
    """Return the numbers of blocks that files of a model may hold beyond it, to predict tokens after the next one.

    transformers leaves them out when it loads a model (DeepseekV3PreTrainedModel._keys_to_ignore_on_load_unexpected).
    """
    if not family_of(config).predicts_further_tokens:
        return range(0)
    number = next((config[key] for key in ("num_nextn_predict_layers", "num_mtp_layers") if key in config), 1)
    if not isinstance(number, int) or number < 0:
        raise refusal("num_nextn_predict_layers", number, "is no number of blocks")
    return range(model.num_layers, model.num_layers + number)


def _obstacles(model: ModelConfig, family: Family) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, reason) of all that a family does not compute."""
    sections = {path.partition(".")[0] for path in family.fields if "." in path}
    missing = sorted(section for section in sections if getattr(model, section) is None)
    for section in missing:
        yield f"model.{section}", "null", f"{family.architecture} has it"
    for path, value in family.implied.items():
        if path.partition(".")[0] not in missing and (ours := value_of(model, path)) != value:
            expected = "none" if value is None else f"only {_plain(value)}"
            yield f"model.{path}", _shown(ours), f"{family.architecture} has {expected}"
    if model.experts is None or "experts" in missing:
        return
    for path, least in family.at_least.items():
        if value_of(model, path) < least:
            yield f"model.{path}", value_of(model, path), f"{family.architecture} has at least {least}"
    if (model.experts.bias_update_rate > 0) != family.has_router_bias:
        has = "has a bias in each router" if family.has_router_bias else "has no bias in its routers"
        yield "model.experts.bias_update_rate", model.experts.bias_update_rate, f"{family.architecture} {has}"


def _check_fixed(config: Mapping[str, Any], family: Family) -> None:
    for key, value in family.fixed.items():
        if (given := config.get(key)) is not None and given != value:
            raise refusal(key, given, f"must be {'null' if value is None else value}")
    if (kinds := config.get("layer_types")) is not None and set(kinds) != {"full_attention"}:
        raise refusal("layer_types", kinds, "every block must be full_attention")


def _given(config: Mapping[str, Any], key: str, family: Family) -> Any:
    """Return what config.json gives for a key, by any of its names, or transformers' default."""
    names = [name for name in (key, _ALIASES.get(key, key)) if name in config]
    if len({repr(config[name]) for name in names}) > 1:
        raise refusal(key, config[key], f"{names[1]} is {config[names[1]]}, and the two are one number")
    value = config[names[0]] if names else family.defaults.get(key)
    if key in _NUMBER_LISTS and value is not None:
        if value != list(range(len(value))):
            raise refusal(key, value, "only the first blocks can be without experts, in order: [0, 1, …]")
        return len(value)
    if value is None and not any(family.fields.get(path) == key for path in _NULLABLE):
        return family.defaults.get(key)
    return value


def _sizes_of_heads(model: ModelConfig) -> dict[str, int]:
    """Return the keys for the sizes of heads; those of latent attention are derived, and some programs want them."""
    rotated = {"head_dim": model.attention_head_size}
    return rotated if model.latent_attention is None else rotated | {"qk_head_dim": head_sizes(model)[0]}


def _comparable(model: ModelConfig) -> dict[str, Any]:
    """Return the model's fields as they are compared: without what no layer has, a bias by whether there is one."""
    values = asdict(model)
    if (experts := values["experts"]) is not None:
        experts["bias_update_rate"] = "given" if experts["bias_update_rate"] > 0 else 0.0
        if not experts["num_dense_layers"]:
            del values["ffn_size"]
    return values


def _pairs(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, our value, their value) of all that is compared."""
    for name in dict.fromkeys([*ours, *theirs]):
        path, left, right = f"{prefix}{name}", ours.get(name), theirs.get(name)
        if path in _TRAINING_ONLY:
            continue
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from _pairs(left, right, f"{path}.")
        else:
            yield path, left, right


def _same(ours: Any, theirs: Any) -> bool:
    """Compare; floats up to what float32 can tell apart, which is how some converters write them."""
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-7)
    return ours == theirs


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _shown(value: Any) -> Any:
    """Return a value for people, a section by whether there is one."""
    if value is None:
        return "null"
    return "given" if isinstance(value, Mapping) or is_dataclass(value) else _plain(value)

"""init_from: where the first training stage's weights come from, as text `hf:DIR` or `checkpoint:DIR`."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from training.config.keys import nearest
from training.config.schema import RunConfig
from training.errors import ConfigError

_MANIFEST = "manifest.json"
_KEY = "init_from"


class WeightsFormat(StrEnum):
    """How a directory of weights is laid out."""

    hf = "hf"
    """Hugging Face: config.json and *.safetensors."""
    checkpoint = "checkpoint"
    """One of Autarky's checkpoints: manifest.json and what it names."""


def split_initial_weights(init_from: str) -> tuple[WeightsFormat, Path]:
    """Return the format and the directory that init_from names.

    Raises:
        ConfigError: it has no known prefix, or no directory behind it.
    """
    prefix, colon, directory = init_from.partition(":")
    if colon and directory and prefix in list(WeightsFormat):
        return WeightsFormat(prefix), Path(directory)
    close = nearest(prefix, list(WeightsFormat)) if colon else []
    if close:
        remedy = f"did you mean {_KEY}={close[0]}:{directory or 'DIR'}?"
    elif not colon and (found := _format_of(Path(init_from))):
        remedy = f"{_KEY}={found}:{init_from} works"
    else:
        remedy = f"{_KEY}=hf:DIR takes a Hugging Face directory, {_KEY}=checkpoint:DIR a checkpoint of Autarky"
    raise ConfigError(_KEY, init_from, "has to say what kind of weights lie where: hf:DIR or checkpoint:DIR", remedy)


def absolute_initial_weights(init_from: str | None, absolute: Callable[[str], str]) -> str | None:
    """Return init_from with `absolute` applied to its directory; what has no known prefix is left for the checks."""
    prefix, _, directory = (init_from or "").partition(":")
    return f"{prefix}:{absolute(directory)}" if directory and prefix in list(WeightsFormat) else init_from


def check_initial_weights_exist(config: RunConfig) -> None:
    """Check that the directory of init_from is there and holds what its prefix says. Reads no weights.

    Raises:
        ConfigError: it does not.
    """
    if config.init_from is None:
        return
    expected, directory = split_initial_weights(config.init_from)
    if _holds(directory, expected):
        return
    if not directory.is_dir():
        raise ConfigError(_KEY, config.init_from, "there is no such directory", _elsewhere(directory))
    if expected is WeightsFormat.checkpoint:
        reason = f"holds no {_MANIFEST}, so it is no whole checkpoint"
    elif (directory / "config.json").is_file():
        reason = "holds no *.safetensors, and other files of weights are never read (they can run code)"
    else:
        reason = "holds no config.json and *.safetensors"
    found = _format_of(directory)
    remedy = f"{_KEY}={found}:{directory} works" if found else _elsewhere(directory)
    raise ConfigError(_KEY, config.init_from, reason, remedy)


def _format_of(directory: Path) -> WeightsFormat | None:
    return next((format_ for format_ in WeightsFormat if _holds(directory, format_)), None)


def _holds(directory: Path, expected: WeightsFormat) -> bool:
    if expected is WeightsFormat.checkpoint:
        return (directory / _MANIFEST).is_file()
    return (directory / "config.json").is_file() and any(directory.glob("*.safetensors"))


def _elsewhere(directory: Path) -> str:
    """Return the remedy for a directory without weights: the newest checkpoint below it, if there is one."""
    below = [*directory.glob(f"step-*/{_MANIFEST}"), *directory.glob(f"checkpoints/step-*/{_MANIFEST}")]
    if below:
        newest = max(below, key=lambda path: path.parent.name).parent
        return f"{_KEY}=checkpoint:{newest} is the newest checkpoint in it"
    return (
        "give a directory with config.json and *.safetensors (hf:), or one that training.checkpoint wrote "
        "(checkpoint:RUN_DIR/checkpoints/step-…); a run that goes on needs it no longer: resume=must"
    )

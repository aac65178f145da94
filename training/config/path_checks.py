"""Names that become file names, and paths: nothing leaves the folder it was meant for, nothing surprises a shell."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from training.config.schema import RunConfig
from training.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_WANDB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}")
_TRAINING_STAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_RESERVED_TRAINING_STAGES = {
    "start": "is the name of the evaluation before the first step",
    "run": "is the name under which metrics.jsonl records the run as a whole",
}
_LONGEST_PATH_BYTES = 4095
_LONGEST_NAME_BYTES = 255
"""linux/limits.h"""


def check_names(config: RunConfig) -> None:
    """Check every name that becomes a part of a path or of an address.

    Raises:
        ConfigError: the first one that cannot be.
    """
    for key, name in (("run.name", config.run.name), ("run.id", config.run.id)):
        if name is not None and not _NAME.fullmatch(name):
            mended = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:64] or "run"
            reason = "is part of a path: letters, digits, '.', '_' and '-', at most 64, a letter or digit first"
            raise ConfigError(key, _shown(name), reason, f"{key}={mended} works")
    for key, names in (("data.sources", config.data.sources), ("eval.suites", config.eval.suites)):
        for name in names:
            if not _FOLDER_NAME.fullmatch(name):
                mended = re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-")[:64] or "one"
                reason = "names a folder or file: letters, digits, '_' and '-', at most 64, a letter or digit first"
                raise ConfigError(key, _shown(name), reason, f"call it {mended}")
    for key, name in (("project", config.reporting.wandb.project), ("entity", config.reporting.wandb.entity)):
        if name is not None and not _WANDB_NAME.fullmatch(name):
            mended = re.sub(r"[^A-Za-z0-9 ._-]", "-", name).lstrip(" ._-")[:128] or "autarky"
            reason = "is part of an address: letters, digits, ' ', '.', '_' and '-', a letter or digit first"
            raise ConfigError(f"reporting.wandb.{key}", _shown(name), reason, f"reporting.wandb.{key}={mended} works")
    _check_training_stage_names(config)


def check_paths(config: RunConfig) -> None:
    """Check that every path is one that a file system can have.

    Raises:
        ConfigError: the first one that cannot be.
    """
    for key, path in _paths(config):
        if any(ord(character) < 32 or ord(character) == 127 for character in path):
            raise ConfigError(key, _shown(path), "has a control character in it", "give a path without it")
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError:
            raise ConfigError(key, _shown(path), "is no text that a file system takes", "give another path") from None
        longest = max(map(len, encoded.split(b"/")))
        if len(encoded) > _LONGEST_PATH_BYTES or longest > _LONGEST_NAME_BYTES:
            reason = f"is too long: {len(encoded)} bytes, the longest name in it {longest}"
            remedy = f"at most {_LONGEST_PATH_BYTES} bytes, each name at most {_LONGEST_NAME_BYTES}"
            raise ConfigError(key, _shown(path), reason, remedy)


def check_no_link(directory: Path) -> None:
    """Check that a run directory is a folder of its own under run.root, no link to somewhere else.

    Raises:
        ConfigError: it is a link.
    """
    if directory.is_symlink():
        target = directory.resolve()
        inside = target.parent == directory.parent.resolve()
        remedy = f"run.id={target.name} names it" if inside else "remove the link, or take another run.id"
        raise ConfigError("run.id", directory.name, f"{directory} is a link to {target}", remedy)


def _check_training_stage_names(config: RunConfig) -> None:
    if not config.stages:
        raise ConfigError("stages", "{}", "a run needs at least one training stage", "stages=single has one")
    for name in config.stages:
        if name in _RESERVED_TRAINING_STAGES:
            raise ConfigError("stages", name, _RESERVED_TRAINING_STAGES[name], f"call the training stage {name}_1")
        if not _TRAINING_STAGE_NAME.fullmatch(name):
            mended = re.sub(r"[^a-z0-9_]", "_", name.lower()).lstrip("0123456789_")[:32] or "pretrain"
            reason = "a training stage's name has small letters, digits and '_', at most 32, a letter first"
            raise ConfigError("stages", _shown(name), reason, f"call it {mended}")


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "run.root", config.run.root
    yield "data.prepared_root", config.data.prepared_root
    for name, source in config.data.sources.items():
        if source.path is not None:
            yield f"data.sources.{name}.path", source.path
    if config.data.tokenizer is not None:
        yield "data.tokenizer", config.data.tokenizer
    if config.checkpoint.fast_root is not None:
        yield "checkpoint.fast_root", config.checkpoint.fast_root
    if config.init_from is not None:
        yield "init_from", config.init_from.partition(":")[2]


def _shown(text: str) -> str:
    """Return a text for a message: short, and without what a terminal would obey."""
    printable = text if text.isprintable() else ascii(text)
    return printable if len(printable) <= 80 else f"{printable[:80]}…"

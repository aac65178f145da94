"""Which directory a start uses: a new one, one that is continued, or none because the request contradicts itself."""

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from training.config.load import FROZEN_NAME, config_hash, freeze, load_frozen
from training.config.path_checks import check_no_link
from training.config.resume_policy import compare
from training.config.schema import Resume, RunConfig
from training.config.typed import to_plain
from training.durable_files import write_durably
from training.errors import ConfigError, StorageError
from training.lease import wait_until_free
from training.plain_files import read_json

LEDGER_NAME = "stages.json"
"""What a run has done, in its directory; `training/stages/ledger.py` writes it."""
_PACKAGES = ("torch", "deepspeed", "hydra-core", "omegaconf", "tokenizers", "safetensors", "numpy", "wandb", "datasets")
_LONGEST_NAME_IN_ID = 40
"""A run id is at most 64 characters: time, name and hash."""


def resolve(config: RunConfig, overrides: Sequence[str]) -> Path:
    """Return the run directory of a start, with the config frozen into it under its final run.id.

    resume=never makes a new one; auto continues run.id's or the newest unfinished one that `find_unfinished` knows,
    else makes a new one; must continues or refuses. Call it once per start, never on every rank.

    Raises:
        ConfigError: run.id is taken, there is nothing to continue, or something would change that may not.
        RunInUse: another job is at work in that directory; nothing was changed.
        StorageError: the directory cannot be written.
    """
    try:
        if config.resume.mode is Resume.never:
            return create(config, overrides)
        directory = _named(config) if config.run.id else find_unfinished(config)
        if directory is not None:
            return _continue(directory, config, overrides)
        if config.resume.mode is Resume.must:
            raise _nothing_to_continue(config)
        return create(config, overrides)
    except OSError as error:
        raise StorageError(
            f"run.root={config.run.root} cannot be written: {error}\n  -> free space or choose another run.root"
        ) from error


def find_unfinished(config: RunConfig) -> Path | None:
    """Return the newest run directory under run.root with this name that is not done and may go on with this config.

    One of the same config_hash comes first. Only with resume.allow does one count that differs, in what it allows.
    """
    names = sorted((path for path in _run_directories(config) if not is_done(path)), reverse=True)
    candidates = [(path, frozen) for path in names if (frozen := _load_quietly(path))]
    candidates = [(path, frozen) for path, frozen in candidates if frozen.run.name == config.run.name]
    wanted = config_hash(config)
    exact = (path for path, frozen in candidates if config_hash(frozen) == wanted)
    allowed = (path for path, frozen in candidates if config.resume.allow and _may_go_on(path, frozen, config))
    return next(exact, None) or next(allowed, None)


def create(config: RunConfig, overrides: Sequence[str]) -> Path:
    """Return a run directory made for this start: config.yaml, overrides.yaml and environment.json are in it.

    Raises:
        ConfigError: run.id is given and its directory already holds checkpoints.
        RunInUse: run.id is given and another job is at work there.
    """
    root = Path(config.run.root)
    root.mkdir(parents=True, exist_ok=True)
    if config.run.id is None:
        directory = _make_new(root, new_run_id(config))
    else:
        directory = root / config.run.id
        check_no_link(directory)
        directory.mkdir(exist_ok=True)
        wait_until_free(directory)
        if has_checkpoints(config, directory):
            raise ConfigError(
                "run.id",
                config.run.id,
                f"{directory} already holds checkpoints and resume={config.resume.mode} would start over",
                "resume=auto continues it; another run.id, or none, starts a new run",
            )
    _write(directory, config, overrides)
    write_durably(directory / "environment.json", json.dumps(environment(), indent=2) + "\n")
    return directory


def new_run_id(config: RunConfig) -> str:
    """Return "<UTC time>-<name>-<first 6 digits of the config hash>"; ids sort by time."""
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{time}-{config.run.name[:_LONGEST_NAME_IN_ID]}-{config_hash(config)[:6]}"


def is_done(directory: Path, *, until: str | None = None) -> bool:
    """Return whether the run's ledger says that every training stage is complete, or the one that is named."""
    try:
        ledger = read_json(directory / LEDGER_NAME)
        return ledger["state"] == "done" or any(
            entry["name"] == until and entry["status"] == "promoted" for entry in ledger["stages"]
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def check_not_done(config: RunConfig, directory: Path) -> None:
    """Check that a run directory has something left to train with this config.

    Raises:
        ConfigError: it has not.
    """
    if is_done(directory) and set(config.stages) <= set(_complete_training_stages(directory)):
        raise ConfigError(
            "run.id",
            directory.name,
            "the run is done: every training stage is complete",
            "add a training stage at the end, with resume.allow=[stages.NAME], or start a new run (resume=never)",
        )


def checkpoint_folders(config: RunConfig, directory: Path) -> list[Path]:
    """Return where a run's checkpoints lie: in the run directory and, if there is one, under checkpoint.fast_root."""
    fast_root = config.checkpoint.fast_root
    return [directory / "checkpoints", *([] if fast_root is None else [Path(fast_root) / directory.name])]


def has_checkpoints(config: RunConfig, directory: Path) -> bool:
    """Return whether a checkpoint, whole or not, lies in one of the run's folders for them."""
    return any(any(folder.glob("step-*")) for folder in checkpoint_folders(config, directory))


def environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on besides its config. No environment variables: they hold secrets."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "hostname": platform.node(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": len((_git("status", "--porcelain") or "").splitlines()),
    }


def _make_new(root: Path, run_id: str) -> Path:
    for attempt in range(1, 1000):  # two starts within one second, as in a sweep, get different directories
        directory = root / (run_id if attempt == 1 else f"{run_id}-{attempt}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise StorageError(f"{root} has a thousand runs called {run_id}\n  -> give another run.name")


def _named(config: RunConfig) -> Path | None:
    assert config.run.id is not None
    directory = Path(config.run.root) / config.run.id
    check_no_link(directory)
    return directory if (directory / FROZEN_NAME).is_file() else None


def _continue(directory: Path, config: RunConfig, overrides: Sequence[str]) -> Path:
    """Freeze the new config over the old one, if all that differs may differ."""
    compare(to_plain(load_frozen(directory)), config, complete=_complete_training_stages(directory))
    check_not_done(config, directory)
    wait_until_free(directory)
    _write(directory, config, overrides)
    return directory


def _may_go_on(directory: Path, frozen: RunConfig, config: RunConfig) -> bool:
    try:
        compare(to_plain(frozen), config, complete=_complete_training_stages(directory))
    except ConfigError:
        return False
    return True


def _complete_training_stages(directory: Path) -> list[str]:
    """Return the training stages that have a checkpoint at their end, as the run's ledger says."""
    try:
        ledger = read_json(directory / LEDGER_NAME)
        return [entry["name"] for entry in ledger["stages"] if entry["checkpoint"] is not None]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []  # nothing was trained yet; a damaged ledger is refused by who opens it


def _write(directory: Path, config: RunConfig, overrides: Sequence[str]) -> None:
    named = dataclasses.replace(config.run, id=directory.name)
    write_durably(directory / "overrides.yaml", yaml.safe_dump(list(overrides)))
    freeze(dataclasses.replace(config, run=named), directory)


def _nothing_to_continue(config: RunConfig) -> ConfigError:
    where = Path(config.run.root)
    others = [path.name for path in _run_directories(config) if not is_done(path)]
    remedy = "resume=auto or never starts a new run"
    if others:
        remedy += f"; unfinished in {where}: {', '.join(sorted(others, reverse=True)[:3])} (run.id=… names one)"
    what = (
        f"{where / config.run.id} is no run directory"
        if config.run.id
        else (
            f"no unfinished run called {config.run.name} that may go on with this config ({config_hash(config)}) "
            f"lies in {where}"
        )
    )
    return ConfigError("resume", config.resume.mode, what, remedy)


def _run_directories(config: RunConfig) -> list[Path]:
    root = Path(config.run.root)
    if not root.is_dir():
        return []
    return [path.parent for path in root.glob(f"*/{FROZEN_NAME}") if not path.parent.is_symlink()]


def _load_quietly(directory: Path) -> RunConfig | None:
    """Return a stored config, or None if another version of Autarky wrote it: such a run is no candidate."""
    try:
        return load_frozen(directory)
    except ConfigError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None

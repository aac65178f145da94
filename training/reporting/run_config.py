"""What a run directory says about how it was started: config.yaml as plain values, and the commands to start again."""

import shlex
from pathlib import Path
from typing import Any

from training.plain_files import read_yaml

_OWN_KEYS = ("run.id", "resume")
"""Overrides that belong to one start."""


def read_config(run_directory: Path, notes: list[str]) -> dict[str, Any]:
    """Return the values of config.yaml; nothing where there is none, or with a note a damaged one."""
    try:
        values = read_yaml(run_directory / "config.yaml")
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"config.yaml is damaged and was left out: {error}")
        return {}
    return {str(key): value for key, value in values.items()}


def resume_command(run_directory: Path, notes: list[str] | None = None) -> str:
    """Return the command that goes on with the run, safe for a shell; what is wrong with overrides.yaml is noted."""
    own = [f"run.id={run_directory.resolve().name}", "resume=auto"]
    return shlex.join(
        ["python", "-m", "launch.submit", *_overrides(run_directory, [] if notes is None else notes), *own]
    )


def fresh_command(run_directory: Path, notes: list[str]) -> str:
    """Return the command that starts another run with the same overrides, safe for a shell."""
    return shlex.join(["python", "-m", "launch.submit", *_overrides(run_directory, notes)])


def _overrides(run_directory: Path, notes: list[str]) -> list[str]:
    """Return the overrides that the run was started with, less those of one start."""
    path = run_directory / "overrides.yaml"
    try:
        overrides = read_yaml(path)
        if not isinstance(overrides, list):
            raise ValueError("it holds no list")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} is damaged and was left out: {error}")
        return []
    return [o for o in map(str, overrides) if o.lstrip("+").split("=")[0] not in _OWN_KEYS]

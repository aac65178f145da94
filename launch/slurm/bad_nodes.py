"""Nodes that a run has found bad: RUN_DIR/slurm/bad_nodes.json, left out by every later start and submission."""

import json
from collections.abc import Mapping
from pathlib import Path

from training.config.slurm_checks import WORD
from training.durable_files import write_durably
from training.errors import ConfigError
from training.plain_files import read_json

_FILE = Path("slurm") / "bad_nodes.json"


def read_bad_nodes(directory: Path) -> dict[str, str]:
    """Return node -> why it is left out.

    Raises:
        ConfigError: the file holds something else; its names go to Slurm.
    """
    path = directory / _FILE
    try:
        nodes = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError("bad nodes", path, str(error), "mend or remove the file") from None
    if not isinstance(nodes, dict) or not all(WORD.fullmatch(name) and isinstance(nodes[name], str) for name in nodes):
        reason = "is not an object of node names and reasons"
        raise ConfigError("bad nodes", path, reason, "mend or remove the file")
    return nodes


def remember_bad_nodes(directory: Path, nodes: Mapping[str, str]) -> None:
    """Add nodes, and why, to those that are left out; take one out of the file again once it is mended."""
    if nodes:
        known = {**nodes, **read_bad_nodes(directory)}  # the first reason stays
        write_durably(directory / _FILE, json.dumps(known, indent=2) + "\n")

"""What a start would do, as text that a person can read and paste: cluster.dry_run=true."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def describe(
    *,
    commands: Sequence[Sequence[str]],
    ranks: Sequence[tuple[str, int]],
    environment: Mapping[str, str],
    files: Mapping[Path, str],
) -> str:
    """Return every command, the place of every rank, the environment as far as it is ours, and every file.

    Args:
        commands: command lines in the order in which they would run.
        ranks: (node, local rank) of every rank, by rank.
        environment: the commands' environment; what they would only inherit is left out, it may hold secrets.
        files: path -> content of what would be written.
    """
    lines = ["commands:", *(f"  {shlex.join(command)}" for command in commands), "ranks:"]
    width = max((len(node) for node, _ in ranks), default=0)
    lines += [f"  rank {rank:>5}  {node:<{width}}  local rank {local}" for rank, (node, local) in enumerate(ranks)]
    ours = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    lines += ["environment:", *(f"  {name}={shlex.quote(value)}" for name, value in sorted(ours.items()))]
    lines += [f"  unset {name}" for name in sorted(os.environ.keys() - environment.keys())]
    for path, content in files.items():
        lines += [f"{path}:", *(f"  {line}" for line in content.splitlines())]
    return "\n".join([*lines, "dry run: nothing was started or written"])

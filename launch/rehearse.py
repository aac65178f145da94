"""Rehearse every rank of a run at full size: do all programs fit together? Without torch, on a laptop.

    python -m launch.rehearse [group=choice …] [key=value …] [--json] [--plant KIND|all] [--fail NODES]

Of each training stage the program of every rank is built (process groups, collectives in order, transfers, shards,
samples, checkpoint files) and all are run against each other. --plant puts a mistake into it and shows what is said of
it; --plant all tries every kind. --fail node=3,17 or random=2,seed=7 shows what dies with some nodes, and what the next
start reads.

Exit code 0: no mistake (--plant all: every mistake was found and named). 1: the programs do not fit together, which is
a bug of ours. 2: the configuration cannot work, or a plan does not fit into the device's memory.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.config.arguments import parse_arguments
from training.config.load import compose
from training.config.precision_checks import check_precision
from training.errors import AutarkyError, ConfigError, ExitCode
from training.rehearsal.failures import lose_nodes, random_nodes, smaller_start, start_with_spares
from training.rehearsal.findings import Finding
from training.rehearsal.planted import MISTAKES, Trial, plant, plant_all
from training.rehearsal.rehearsal import Rehearsal
from training.rehearsal.report import (
    as_plain,
    describe,
    describe_loss,
    describe_trials,
    findings_as_plain,
    loss_as_plain,
)

_ALL = "all"


@dataclass(slots=True)
class _Asked:
    """The options of this command, taken out of a command line."""

    rest: list[str] = field(default_factory=list)
    as_json: bool = False
    plant: str | None = None
    fail: str | None = None


def main(argv: Sequence[str]) -> int:
    """Print the rehearsal of every training stage; return the exit code."""
    try:
        asked = _options(argv)
        arguments = parse_arguments(asked.rest)
        if arguments.help:
            print(__doc__)
            return ExitCode.DONE
        config = compose(arguments.positional, to_plan=True)
        check_precision(config, to_plan=False)  # a rehearsal is of an engine's program
        shown = [_rehearse(Rehearsal.of(config, name), asked) for name in config.stages]
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if asked.as_json:
        print(json.dumps([plain for _, plain, _ in shown], indent=1))
    else:
        print("\n\n".join(text for text, _, _ in shown))
    return max(code for _, _, code in shown)


def _rehearse(rehearsal: Rehearsal, asked: _Asked) -> tuple[str, dict[str, Any], ExitCode]:
    """Return what is said of one training stage: text, plain values, exit code."""
    texts: list[str] = []
    trials: list[Trial] = []
    if asked.plant == _ALL:
        trials = plant_all(rehearsal)
        texts.append(describe_trials(trials, list(MISTAKES)))
    elif asked.plant is not None:
        trials = [_planted(rehearsal, asked.plant)]
    findings = list(trials[0].findings) if asked.plant not in (None, _ALL) else rehearsal.check()
    texts.insert(0, describe(rehearsal, findings))
    plain = as_plain(rehearsal, findings)
    if asked.plant == _ALL:
        plain["planted"] = {t.kind: None if t.naming is None else findings_as_plain(t.naming) for t in trials}
    if asked.fail is not None:
        loss = lose_nodes(rehearsal, _nodes(asked.fail, rehearsal.plan.config.cluster.num_nodes))
        num_alive = rehearsal.plan.config.cluster.num_nodes - len(loss.nodes)
        starts = [
            (f"with {len(loss.nodes)} spare", start_with_spares(rehearsal)),
            ("without spares", smaller_start(rehearsal, num_alive_nodes=num_alive)),
        ]
        texts.append(describe_loss(loss, starts))
        plain["failure"] = loss_as_plain(loss, starts)
    return "\n".join(texts), plain, _exit_code(findings, trials if asked.plant == _ALL else [])


def _exit_code(findings: Sequence[Finding], trials: Sequence[Trial]) -> ExitCode:
    if any(trial.naming is None for trial in trials) or any(finding.check != "memory" for finding in findings):
        return ExitCode.FAILED
    return ExitCode.BAD_CONFIG if findings else ExitCode.DONE


def _planted(rehearsal: Rehearsal, kind: str) -> Trial:
    trial = plant(rehearsal, kind)
    if trial is None:
        others = "python -m launch.rehearse … --plant all shows those that it has room for"
        raise ConfigError("--plant", kind, "this layout leaves no room for it", others)
    return trial


def _options(argv: Sequence[str]) -> _Asked:
    """Return this command's options and the rest of the command line.

    Raises:
        ConfigError: an option without its value, or a kind of mistake that there is not.
    """
    asked = _Asked()
    words = iter(argv)
    for word in words:
        name, has_value, value = word.partition("=")
        if word == "--json":
            asked.as_json = True
        elif name in ("--plant", "--fail"):
            given = value if has_value else next(words, None)
            if not given:
                raise ConfigError("command line", name, "it needs a value", f"python -m launch.rehearse --help: {name}")
            setattr(asked, name.removeprefix("--"), given)
        else:
            asked.rest.append(word)
    if asked.plant is not None and asked.plant not in (*MISTAKES, _ALL):
        raise ConfigError("--plant", asked.plant, "there is no such kind", f"one of {', '.join((*MISTAKES, _ALL))}")
    return asked


def _nodes(text: str, num_nodes: int) -> list[int]:
    """Return the nodes that "node=3,17" or "random=2,seed=7" names.

    Raises:
        ConfigError: it names none.
    """
    numbers: dict[str, list[int]] = {}
    key = ""
    try:
        for part in text.split(","):
            name, is_named, value = part.partition("=")
            key = name if is_named else key
            numbers.setdefault(key, []).append(int(value if is_named else name))
    except ValueError:
        numbers = {}
    match numbers:
        case {"node": nodes, **rest} if not rest:
            return nodes
        case {"random": [count], **rest} if set(rest) <= {"seed"} and len(rest.get("seed", [0])) == 1:
            return random_nodes(num_nodes, count=count, seed=rest.get("seed", [0])[0])
    raise ConfigError("--fail", text, "it names no nodes", "node=3,17 or random=2,seed=7")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

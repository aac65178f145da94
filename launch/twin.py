"""Train a run's twin on this machine first: the same experiment, scaled down in its own ratios, for real.

    python -m launch.twin experiment=mai1_500b [key=value …] [--processes N] [--steps N] [--dry-run]

The experiment is composed as for a plan, scaled down (model, layout, training stages, batches), and started by
launch.submit with cluster=local and the text of data=demo. Every value that changes is printed beside the original.
--dry-run prints them, and the command that starts the twin, and starts nothing. What a twin leaves out: docs/models.md.
Exit codes are those of launch.submit (docs/exit_codes.md).
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from launch import submit
from launch.check import summary
from training.config.differences import Difference, differences
from training.config.load import compose, compose_unchecked
from training.config.schema import Launcher, RunConfig
from training.config.twin import Laptop, twin_of
from training.errors import AutarkyError, ConfigError, ExitCode
from training.models.sizes import num_parameters

_HERE = ("cluster=local", "data=demo")
_VOCAB_SIZE = 512
"""Tokens: a larger vocabulary would make embedding and logits most of so small a model."""
_REASONS = {
    "*parallel.tensor": "no engine runs tensor parallelism",
    "*parallel.zero_secondary_ranks": "no engine runs hpZ",
    "precision": "no engine multiplies in fp8",
    "*.gate": "its limits are for the full size",
    "*.benchmarks.*": "its items are not for a model of this size",
    "*.batch_ramp": "a batch of so few sequences has no room to grow",
    "init_from": "those weights are of the full size",
    "*lr": "for a model of this size",
}
"""Pattern of a key -> why the twin has another value, where it is not its size."""


def main(argv: Sequence[str]) -> int:
    """Print what the twin of a command line's run is, start it unless told not to, and return the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        overrides, comparison = scale_down(arguments.words, processes=arguments.processes, steps=arguments.steps)
        print(comparison, flush=True)
        if arguments.dry_run:
            print(summary(compose(overrides)))
            print(f"\npython -m launch.submit {shlex.join(overrides)}")
            return ExitCode.DONE
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return submit.main(overrides)


def scale_down(words: Sequence[str], *, processes: int, steps: int) -> tuple[list[str], str]:
    """Return the overrides that launch.submit starts a run's twin with, and the same for people, beside the original.

    Raises:
        ConfigError: the run itself is impossible, or a twin has no processes or steps.
    """
    for option, given in (("--processes", processes), ("--steps", steps)):
        if given < 1:
            raise ConfigError(option, given, "a twin trains with at least one", f"{option} 1 works")
    original = compose(words, to_plan=True)
    here = compose_unchecked([*words, *_HERE])
    cluster = replace(here.cluster, num_nodes=1, processes_per_node=processes, launcher=Launcher.local)
    data = replace(compose_unchecked(["data=demo"]).data, tokenizer_vocab_size=_VOCAB_SIZE)
    laptop = Laptop(cluster=cluster, data=data, steps=steps)
    twin = twin_of(original, laptop)
    changes = differences(here, twin)
    return [*words, *_HERE, *(change.override for change in changes)], _comparison(original, twin, changes)


def _comparison(original: RunConfig, twin: RunConfig, changes: Sequence[Difference]) -> str:
    """Return one line for each change, with the original value and what is to be said of it."""
    held = {change.key: change.before for change in differences(original, twin)}
    rows = []
    for change in changes:
        why = next((text for pattern, text in _REASONS.items() if fnmatchcase(change.key, pattern)), None)
        was = held.get(change.key, change.before)
        was = "given" if isinstance(was, dict | list) else was
        rows.append((change.override, "new" if change.override.startswith("+") else f"was {was}", why))
    width = max(len(override) for override, _, _ in rows)
    lines = [f"  {text:{width}}  {was}" + (f": {why}" if why else "") for text, was, why in rows]
    sizes = [f"{num_parameters(config.model):,}" for config in (original, twin)]
    return "\n".join([f"twin of {original.run.name}: {sizes[1]} parameters in place of {sizes[0]}", *lines])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.twin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="the run, as launch.submit takes it")
    parser.add_argument("--processes", type=int, default=4, help="ranks on this machine (default: 4)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the whole run (default: 200)")
    parser.add_argument("--dry-run", action="store_true", help="start nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

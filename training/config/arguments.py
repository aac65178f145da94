"""The command line that every entry point shares: overrides, with what launchers add taken away."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.errors import ConfigError

_LOCAL_RANK = re.compile(r"--local[-_]rank(=(?P<value>.*))?")
_MULTIRUN = ("-m", "--multirun")
_HELP = ("-h", "--help")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """What a user asked for, without what a launcher added."""

    positional: list[str]
    """Arguments that are no options, in order: overrides, or a run directory."""
    multirun: bool = False
    """-m or --multirun: overrides with several values are a sweep."""
    help: bool = False
    """-h or --help."""
    show_config: bool = False
    """--cfg job: print the resolved config and do nothing else (Hydra's spelling)."""


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Return the parsed arguments; every spelling of `--local_rank` is dropped, wherever it stands.

    Spellings: `--local_rank=3`, `--local_rank 3` and both with '-'. Ranks read LOCAL_RANK from the environment:
    every launcher sets it.

    Raises:
        ConfigError: an option nobody knows, or one without its value.
    """
    positional: list[str] = []
    multirun = show_help = show_config = False
    words = iter(argv)
    for word in words:
        if match := _LOCAL_RANK.fullmatch(word):
            if match["value"] is None:
                _value_of(word, words)
        elif word in _MULTIRUN:
            multirun = True
        elif word in _HELP:
            show_help = True
        elif word in ("--cfg", "-c"):
            if (what := _value_of(word, words)) != "job":
                raise ConfigError(word, what, "only the job's config can be shown", f"write {word} job")
            show_config = True
        elif word.startswith("-"):
            raise ConfigError(
                "command line",
                word.partition("=")[0],  # what stands behind it may be a secret
                "there is no such option",
                "options are -m, --cfg job and --help; settings are key=value",
            )
        else:
            positional.append(word)
    return Arguments(positional=positional, multirun=multirun, help=show_help, show_config=show_config)


def _value_of(option: str, words: Iterator[str]) -> str:
    value = next(words, None)
    if value is None:
        raise ConfigError("command line", option, "it needs a value", f"write {option} VALUE")
    return value

"""Tokens per second of a whole preparation, all cores, beside the tokenizers library alone.

Ours reads JSON Lines, removes equal documents, encodes, hashes, writes and calls fsync. The library only encodes: its
fastest batch call over the same texts, which are in memory, on all cores.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from benchmarks.source_texts import overrides_for
from benchmarks.tables import spread, table
from training.config.load import compose
from training.data.prepare import ensure

SOURCE = "texts"
_OURS, _PROCESS, _RAW = "Autarky, prepare", "Autarky, with the process's start", "tokenizers, encode_batch_fast"
_TEXTS_AT_ONCE = 512
"""More in one call of the library makes it no faster, and its encodings take memory."""
_TIMEOUT_SECONDS = 1200.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparationContest:
    """Seconds of both, round by round."""

    num_bytes: int
    num_tokens: int
    """Of all texts, end-of-document tokens left out."""
    are_equal: bool
    """Whether both found the same number of tokens."""
    num_texts: int
    seconds: dict[str, list[float]]
    """Contestant -> seconds of each round."""
    cpu_seconds: dict[str, list[float]]
    """The same of processor time, all processes together."""

    def shares(self, name: str) -> list[float]:
        """Return a contestant's rate over the library's, round by round."""
        return [raw / its for its, raw in zip(self.seconds[name], self.seconds[_RAW], strict=True)]


def preparation_overrides(path: Path, prepared_root: Path, tokenizer: Path) -> list[str]:
    """Return the config of a preparation of a JSON Lines file, and of training on it."""
    return [
        *overrides_for(SOURCE, path),
        "model=smollm2_135m",
        f"data.tokenizer={tokenizer}",
        f"data.prepared_root={prepared_root}",
    ]


def compete_in_preparation(
    texts: Sequence[str], path: Path, root: Path, *, tokenizer: Path, num_rounds: int, say: Callable[[str], None]
) -> tuple[PreparationContest, list[str]]:
    """Return the seconds of both, and the config of data that was prepared.

    Args:
        texts: all texts.
        path: a JSON Lines file with them.
        root: a folder for what is prepared, new in every round.
        tokenizer: directory with tokenizer.json.
        num_rounds: turns of each; who is first changes with every round.
        say: is told what is done.
    """
    library = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    library.encode_special_tokens = True  # as ours: a document that names a special token has its text
    seconds: dict[str, list[float]] = {_OURS: [], _PROCESS: [], _RAW: []}
    cpu_seconds: dict[str, list[float]] = {_PROCESS: [], _RAW: []}
    num_raw_tokens = 0
    overrides: list[str] = []
    for number in range(num_rounds):
        for name in (_OURS, _RAW) if number % 2 == 0 else (_RAW, _OURS):
            say(f"preparation, round {number + 1} of {num_rounds}: {name}")
            begun, cpu_begun = time.perf_counter(), _cpu_seconds()
            if name == _OURS:
                overrides = preparation_overrides(path, root / f"prepared-{number}", tokenizer)
                seconds[_OURS].append(_prepare(overrides))
                seconds[_PROCESS].append(time.perf_counter() - begun)
                cpu_seconds[_PROCESS].append(_cpu_seconds() - cpu_begun)
            else:
                num_raw_tokens = _encode(library, texts)
                seconds[_RAW].append(time.perf_counter() - begun)
                cpu_seconds[_RAW].append(_cpu_seconds() - cpu_begun)
    (source,) = ensure(compose(overrides).data).manifest.sources.values()
    contest = PreparationContest(
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=num_raw_tokens,
        are_equal=source.train.num_tokens == num_raw_tokens + len(texts),
        num_texts=len(texts),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )
    return contest, overrides


def preparation(contest: PreparationContest) -> list[str]:
    """Return the page's part about it."""
    rows = [
        [
            name,
            spread(seconds, ".1f"),
            spread([contest.num_tokens / s / 1e6 for s in seconds], ".2f"),
            spread(contest.shares(name), ".2f"),
            spread(contest.cpu_seconds[name], ".1f") if name in contest.cpu_seconds else "-",
        ]
        for name, seconds in contest.seconds.items()
    ]
    goal = "met" if statistics.median(contest.shares(_OURS)) >= 0.8 else "missed"
    return [
        "### Preparing",
        "",
        f"{contest.num_texts:,} documents of {contest.num_bytes / 1e6:.0f} MB, definitions out of the Python files of "
        f"this machine; {contest.num_tokens / 1e6:.1f} million tokens of SmolLM2's tokenizer, all cores on both sides, "
        "in turns. Ours reads JSON Lines, removes equal documents, encodes, hashes, writes and calls fsync. The "
        f"library encodes texts that are in memory, {_TEXTS_AT_ONCE} a call, and keeps nothing.",
        "",
        *table(["", "seconds", "million tokens/s", "it ÷ library", "CPU s"], rows),
        "",
        f"Goal, at least 0.80 of the library's rate: {goal}. Both found "
        f"{'the same' if contest.are_equal else 'NOT the same'} number of tokens.",
    ]


def _prepare(overrides: Sequence[str]) -> float:
    """Return the seconds of a preparation in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.timed_prepare", *overrides],
        check=True,
        stdout=subprocess.PIPE,
        timeout=_TIMEOUT_SECONDS,
        env={name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"},
    )
    return json.loads(done.stdout)["seconds"]


def _cpu_seconds() -> float:
    """Return the processor time of this process and of all that it started and that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _encode(library: tokenizers.Tokenizer, texts: Sequence[str]) -> int:
    return sum(
        len(encoding)
        for first in range(0, len(texts), _TEXTS_AT_ONCE)
        for encoding in library.encode_batch_fast(texts[first : first + _TEXTS_AT_ONCE], add_special_tokens=False)
    )

"""Tokens per second of `python -m training.data prepare`, all cores, beside the tokenizers library alone.

Ours is the whole command: the interpreter's start, reading JSON Lines, hashing, encoding, writing, fsync. The library
only encodes: its fastest batch call over the same texts, which are in memory, on all cores.
"""

import os
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
    our_seconds: list[float]
    raw_seconds: list[float]

    @property
    def shares(self) -> list[float]:
        """Our rate over the library's, round by round."""
        return [raw / ours for ours, raw in zip(self.our_seconds, self.raw_seconds, strict=True)]


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
    seconds: dict[str, list[float]] = {"ours": [], "raw": []}
    num_raw_tokens = 0
    overrides: list[str] = []
    for number in range(num_rounds):
        for name in ("ours", "raw") if number % 2 == 0 else ("raw", "ours"):
            say(f"preparation, round {number + 1} of {num_rounds}: {name}")
            begun = time.perf_counter()
            if name == "ours":
                overrides = preparation_overrides(path, root / f"prepared-{number}", tokenizer)
                _prepare(overrides)
            else:
                num_raw_tokens = _encode(library, texts)
            seconds[name].append(time.perf_counter() - begun)
    (source,) = ensure(compose(overrides).data).manifest.sources.values()
    contest = PreparationContest(
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=num_raw_tokens,
        are_equal=source.train.num_tokens == num_raw_tokens + len(texts),
        our_seconds=seconds["ours"],
        raw_seconds=seconds["raw"],
    )
    return contest, overrides


def preparation(contest: PreparationContest) -> list[str]:
    """Return the page's part about it."""
    named = {
        "python -m training.data prepare": contest.our_seconds,
        "tokenizers, encode_batch_fast": contest.raw_seconds,
    }
    rows = [
        [name, spread(seconds, ".1f"), spread([contest.num_tokens / s / 1e6 for s in seconds], ".2f")]
        for name, seconds in named.items()
    ]
    goal = "met" if statistics.median(contest.shares) >= 0.8 else "missed"
    return [
        "### Preparing",
        "",
        f"{contest.num_bytes / 1e6:.0f} MB of Python files, {contest.num_tokens / 1e6:.1f} million tokens of "
        f"SmolLM2's tokenizer, all cores on both sides. {len(contest.our_seconds)} rounds, in turns. Ours is the whole "
        "command: the interpreter's start, reading JSON Lines, removing equal documents, encoding, hashing, writing, "
        f"fsync. The library encodes texts that are in memory, {_TEXTS_AT_ONCE} per call, and keeps nothing.",
        "",
        *table(["", "seconds", "million tokens/s"], rows),
        "",
        f"Ours ÷ the library: {spread(contest.shares, '.2f')}; goal, at least 0.80: {goal}. Both found "
        f"{'the same' if contest.are_equal else 'NOT the same'} number of tokens.",
    ]


def _prepare(overrides: Sequence[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "training.data", "prepare", *overrides],
        check=True,
        stdout=sys.stderr,
        timeout=_TIMEOUT_SECONDS,
        env={name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"},
    )


def _encode(library: tokenizers.Tokenizer, texts: Sequence[str]) -> int:
    return sum(
        len(encoding)
        for first in range(0, len(texts), _TEXTS_AT_ONCE)
        for encoding in library.encode_batch_fast(texts[first : first + _TEXTS_AT_ONCE], add_special_tokens=False)
    )

"""Real documents, prepared by one command that is killed on the way: equal to what an undisturbed command prepares.

    python -m tests.drills.documents [--packages 5] [--kills 2] [--seed 0]

The documents are the HTML pages of Debian packages (document_packages.py), the tokenizer is SmolLM2's (make weights).
Kills are SIGKILL, at moments drawn from the seed. The speed stands beside that of the tokenizer alone, which encodes
the same texts on all cores, half of them before the undisturbed command and half after it.
"""

import argparse
import filecmp
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from tokenizers import Tokenizer

from tests.drills.document_packages import PACKAGES, write_documents
from tests.drills.drill_run import conclude
from tests.integration.running import REPOSITORY, Finished, Job, kill, run_to_end
from training.config.data_schema import DataConfig
from training.config.load import compose
from training.data.readers.json_lines import json_objects
from training.data.settings import directory_of
from training.data.shards import PreparedData

CACHE = REPOSITORY / "build" / "documents"
"""Where conf/data/documents.yaml looks for them."""
_SOURCES = dict(zip(PACKAGES, ("postgresql", "python", "cppreference", "linux", "rust"), strict=True))
_LIMIT_SECONDS = 1200.0
"""For what takes a minute or two on two quiet cores."""
_TEXTS_PER_CALL = 1024
_LONGEST_WAIT_SECONDS = 0.2
"""After a unit of work was finished, until the kill."""


@dataclass(kw_only=True)
class Rate:
    """Tokens, and the time that they took."""

    num_tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all processes: what other programs on the machine take does not count."""

    def share_of(self, other: "Rate") -> str:
        """Return how this speed compares with another."""
        wall, cpu = (
            self.num_tokens / mine / (other.num_tokens / theirs)
            for mine, theirs in ((self.seconds, other.seconds), (self.cpu_seconds, other.cpu_seconds))
        )
        return f"{wall:.0%} ({cpu:.0%} per second of CPU time)"

    def __str__(self) -> str:
        return (
            f"{self.num_tokens:,} tokens in {self.seconds:.1f} s, {self.num_tokens / self.seconds:,.0f} tokens/s "
            f"({self.cpu_seconds:.1f} s of CPU time)"
        )


@dataclass(kw_only=True)
class Found:
    """What the drill saw."""

    table: str = ""
    """What the command printed that came to the end after the kills."""
    kills: list[str] = field(default_factory=list)
    """What was finished at each."""
    num_kept: int = 0
    """Shards that killed commands had finished, and that stand as they were written."""
    num_files: int = 0
    num_bytes: int = 0
    prepared: Rate = field(default_factory=Rate)
    """The undisturbed command, from its start to its end."""
    tokenizer: Rate | None = None
    """The tokenizer alone; None where it was not measured."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            self.table,
            f"{len(self.kills)} kills: {'; '.join(self.kills)}",
            f"{self.num_files} files, {self.num_bytes:,} bytes, compared with the undisturbed ones; "
            f"{self.num_kept} shards that killed commands had finished stand as they were written",
            f"prepared:  {self.prepared}",
        ]
        if self.tokenizer is not None:
            lines += [f"tokenizer: {self.tokenizer}", f"prepared / tokenizer: {self.prepared.share_of(self.tokenizer)}"]
        return "\n".join([*lines, f"{len(self.problems)} problems"])


def main() -> int:
    """Run the drill and print what it saw."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.documents")
    fewest = 2  # of one, that is a chunk and a shard, nothing is left to do at a second kill
    numbers = range(fewest, len(PACKAGES) + 1)
    parser.add_argument("--packages", type=int, default=len(PACKAGES), choices=numbers, help="the smallest first")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for package in PACKAGES[: options.packages]:
        write_documents(package, CACHE)
    overrides = overrides_of([_SOURCES[package] for package in PACKAGES[: options.packages]])
    folder = Path(tempfile.mkdtemp(prefix="autarky-drill-"))
    found = drill(folder, overrides, num_workers=[None] * (options.kills + 1), seed=options.seed, has_speed=True)
    print(*found.problems, sep="\n", end="\n" if found.problems else "")
    print(found)
    return conclude(folder, is_wrong=bool(found.problems))


def overrides_of(sources: Sequence[str]) -> list[str]:
    """Return the overrides of a config with these of the sources in conf/data/documents.yaml."""
    overrides = ["data=documents", "stages=documents", "model=smollm2_135m"]
    overrides.append(f"eval.suites.quick.held_out_source={sources[0]}")
    for name in sorted(set(_SOURCES.values()) - set(sources)):
        overrides += [f"~data.sources.{name}", f"~stages.pretrain.mixture.{name}"]
    return overrides


def drill(
    folder: Path, overrides: Sequence[str], *, num_workers: Sequence[int | None], seed: int, has_speed: bool
) -> Found:
    """Prepare the same data twice and compare: once undisturbed, once by commands that are killed but for the last.

    Args:
        folder: for all that is made.
        overrides: of a config with sources of kind json and a tokenizer's directory.
        num_workers: data.num_workers of each command from the first one to be killed to the last one.
        seed: draws the moments.
        has_speed: whether the tokenizer's speed is measured too.
    """
    found = Found(tokenizer=Rate() if has_speed else None)
    undisturbed, killed = (_config(overrides, folder / name) for name in ("undisturbed", "killed"))
    if found.tokenizer is not None:
        _encode(undisturbed, 0, found.tokenizer)
    begun, cpu_begun = time.perf_counter(), _children_cpu_seconds()
    _prepare(folder, overrides, undisturbed)
    found.prepared.seconds = time.perf_counter() - begun
    found.prepared.cpu_seconds = _children_cpu_seconds() - cpu_begun
    if found.tokenizer is not None:
        _encode(undisturbed, 1, found.tokenizer)
    prepared = PreparedData.open(undisturbed, verify=True)
    found.prepared.num_tokens = sum(
        split.num_tokens for source in prepared.manifest.sources.values() for split in (source.train, source.held_out)
    )
    _check_that_none_is_lost(prepared, undisturbed, found)
    draw = random.Random(seed)
    moments = _moments(draw, len(num_workers) - 1, _num_units(prepared) * 3 // 4)
    kept: dict[Path, tuple[int, int]] = {}
    for moment, workers in zip(moments, num_workers, strict=False):
        wait_seconds = draw.uniform(0, _LONGEST_WAIT_SECONDS)
        kept |= _killed(folder, [*overrides, *_workers(workers)], killed, moment, wait_seconds, found)
    found.table = _prepare(folder, [*overrides, *_workers(num_workers[-1])], killed).stdout.rstrip()
    _compare(directory_of(killed), prepared.directory, found)
    found.num_kept = len(kept)
    found.problems += [
        f"{path} was finished, and written again" for path, identity in kept.items() if _identity(path) != identity
    ]
    return found


def _moments(draw: random.Random, number: int, num_units: int) -> list[int]:
    """Return after how many units each kill comes: one in each of as many equal parts of the work."""
    ends = [1 + num_units * part // number for part in range(number + 1)]
    return [draw.randrange(begin, end) for begin, end in pairwise(ends)]


def _num_units(prepared: PreparedData) -> int:
    """Return how often at least a chunk or a shard is finished, less the held-out shards: the last, in no time."""
    return sum(2 * len(source.train.shards) for source in prepared.manifest.sources.values())


def _config(overrides: Sequence[str], root: Path) -> DataConfig:
    return compose([*overrides, f"data.prepared_root={root}"]).data


def _workers(number: int | None) -> list[str]:
    return [] if number is None else [f"data.num_workers={number}"]


def _command(overrides: Sequence[str], data: DataConfig) -> list[str]:
    prepared_root = f"data.prepared_root={data.prepared_root}"
    return [sys.executable, "-m", "training.data", "prepare", *overrides, prepared_root]


def _prepare(folder: Path, overrides: Sequence[str], data: DataConfig) -> Finished:
    finished = run_to_end(_command(overrides, data), folder=folder, limit_seconds=_LIMIT_SECONDS)
    assert finished.exit_code == 0, finished.explain()
    return finished


def _killed(
    folder: Path, overrides: Sequence[str], data: DataConfig, moment: int, wait_seconds: float, found: Found
) -> dict[Path, tuple[int, int]]:
    """Kill a command some time after so many units are finished; return what it has finished, as it will be called."""
    target = directory_of(data)
    work = target.with_name(f".preparing-{target.name}")
    with Job(_command(overrides, data), folder=folder) as job:
        job.wait_until(lambda: sum(map(len, _finished(work))) >= moment, limit_seconds=_LIMIT_SECONDS)
        time.sleep(wait_seconds)
        kill(job.process_named("prepare"))
        found.problems += [f"a killed command leaves {line}" for line in job.survivors(within_seconds=30)]
    chunks, shards = _finished(work)
    found.kills.append(f"with {len(chunks)} chunks read and {len(shards)} shards written")
    if os.listdir(data.prepared_root) != [work.name]:
        found.problems.append(f"after a kill there is {os.listdir(data.prepared_root)}, {work.name} was expected")
    kept: dict[Path, tuple[int, int]] = {}
    for shard in shards:
        source, _, name = shard.stem.partition(".")
        kept[target / source / f"{name}.bin"] = _identity(work / "data" / source / f"{name}.bin")
    return kept


def _finished(work: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that commit chunks, and those that commit shards."""
    return list(work.glob("read/*/chunk-?????.json")), list(work.glob("shards/*.json"))


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def _compare(mine: Path, theirs: Path, found: Found) -> None:
    names = {path.relative_to(folder) for folder in (mine, theirs) for path in folder.rglob("*") if path.is_file()}
    _, different, missing = filecmp.cmpfiles(mine, theirs, list(map(str, names)), shallow=False)
    found.problems += [f"{name} is not as in the undisturbed folder" for name in different + missing]
    found.num_files = len(names)
    found.num_bytes = sum((theirs / name).stat().st_size for name in names if (theirs / name).is_file())
    if os.listdir(mine.parent) != [mine.name]:
        found.problems.append(f"beside the prepared folder lies {os.listdir(mine.parent)}")


def _check_that_none_is_lost(prepared: PreparedData, data: DataConfig, found: Found) -> None:
    """Every record is in a shard, or in quarantine."""
    for name, source in prepared.manifest.sources.items():
        rows = json_objects(name, data.sources[name], 0)
        there = sum(row.content is not None for row in rows)
        used, quarantined = source.train.num_records + source.held_out.num_records, sum(source.quarantined.values())
        told = (prepared.directory / name / "quarantine.jsonl").read_bytes().count(b"\n") if quarantined else 0
        if there != used + quarantined or told != quarantined:
            found.problems.append(f"{name}: {there} records, {used} used, {quarantined} in quarantine, {told} named")


def _encode(data: DataConfig, half: int, rate: Rate) -> None:
    """Encode every second text by the tokenizer alone, on all cores; reading them does not count."""
    assert data.tokenizer is not None
    tokenizer = Tokenizer.from_file(str(Path(data.tokenizer) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    rows = (row.content for name, source in data.sources.items() for row in json_objects(name, source, 0))
    texts = islice((row["text"] for row in rows if isinstance(row, Mapping) and row.get("text")), half, None, 2)
    while some := list(islice(texts, _TEXTS_PER_CALL)):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        encodings = tokenizer.encode_batch_fast(some, add_special_tokens=False)
        rate.seconds += time.perf_counter() - begun
        rate.cpu_seconds += time.process_time() - cpu_begun
        rate.num_tokens += sum(map(len, encodings))


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())

"""Which benchmarks there are, and whether they lie prepared and unchanged in a folder. No torch, no lm_eval.

`python -m eval.prepare` writes `<root>/benchmarks/<name>/`; what is asked of a run is checked against it before the run
starts, where nothing is lost yet.
"""

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from training.plain_files import read_json, typed

ITEMS_NAME = "items.jsonl"
"""One JSON object a line, in the benchmark's own order."""
MANIFEST_NAME = "manifest.json"
PACKAGE_NAME = "package"
"""Folder of the third-party files that a benchmark runs, as they stand in its wheel."""


class BenchmarkKind(StrEnum):
    """How a benchmark is measured."""

    multiple_choice = "multiple_choice"
    """The likeliest of given answers."""
    generation = "generation"
    """An answer that the model writes."""
    rolling = "rolling"
    """Bits per byte of whole texts."""
    program = "program"
    """A program that the model writes, and that is run."""
    workflow = "workflow"
    """A conversation of many steps, in which the model calls functions that change a state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark."""

    kind: BenchmarkKind
    answer_tokens: int | None = None
    """Longest answer where a suite does not say; None for what is scored and not generated."""
    version: int = 1
    """Raised with every change of its items, prompt or scoring: numbers of two versions are not comparable."""
    has_functions: bool = False
    """Whether its questions show functions to call."""


BENCHMARKS: dict[str, Benchmark] = {
    "accounting_audit": Benchmark(kind=BenchmarkKind.multiple_choice),
    "cissp": Benchmark(kind=BenchmarkKind.multiple_choice),
    "fcc_amateur_extra": Benchmark(kind=BenchmarkKind.multiple_choice),
    "logiqa": Benchmark(kind=BenchmarkKind.multiple_choice),
    "medmcqa": Benchmark(kind=BenchmarkKind.multiple_choice),
    "us_tort_law": Benchmark(kind=BenchmarkKind.multiple_choice),
    "pointer_value_retrieval": Benchmark(kind=BenchmarkKind.generation, answer_tokens=8),
    "regex_match": Benchmark(kind=BenchmarkKind.generation, answer_tokens=8),
    "bfcl_simple": Benchmark(kind=BenchmarkKind.generation, answer_tokens=512, has_functions=True),
    "bfcl_multiple": Benchmark(kind=BenchmarkKind.generation, answer_tokens=512, has_functions=True),
    "bfcl_parallel": Benchmark(kind=BenchmarkKind.generation, answer_tokens=512, has_functions=True),
    "human_eval": Benchmark(kind=BenchmarkKind.program, answer_tokens=1024),
    "needle": Benchmark(kind=BenchmarkKind.generation, answer_tokens=32),
    "multi_needle": Benchmark(kind=BenchmarkKind.generation, answer_tokens=128),
    "short_needle": Benchmark(kind=BenchmarkKind.generation, answer_tokens=8),
    "bits_per_byte_code": Benchmark(kind=BenchmarkKind.rolling),
    "bits_per_byte_prose": Benchmark(kind=BenchmarkKind.rolling),
    "bfcl_multi_turn": Benchmark(kind=BenchmarkKind.workflow, answer_tokens=512, has_functions=True),
}
"""Name -> benchmark."""


def can_be_tried_again(name: str) -> bool:
    """Return whether several tries at each of a benchmark's tasks are measured."""
    return BENCHMARKS[name].kind in (BenchmarkKind.workflow, BenchmarkKind.program)


def metrics_of(name: str, num_tries: int) -> list[str]:
    """Return what a benchmark gives item by item: "<name>/<metric>", which gates can ask for."""
    kind = BENCHMARKS[name].kind
    if can_be_tried_again(name):
        return [f"{name}/pass_at_1", *(f"{name}/pass_hat_{k}" for k in range(2, num_tries + 1))]
    if kind is BenchmarkKind.rolling:
        return [f"{name}/bits_per_byte"]
    return [f"{name}/acc", *([f"{name}/parsed"] if BENCHMARKS[name].has_functions else [])]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkManifest:
    """What `manifest.json` of a prepared benchmark holds."""

    name: str
    version: int
    source: str
    """The package its items come from, or what they are made of."""
    source_version: str
    wheel_sha256: str | None
    """Of the package's wheel; null for what is made on this machine."""
    licence: str
    licence_file: str
    """Where the licence stands."""
    num_items: int
    num_dropped: int
    """Items of the source that are not used, because they are damaged or stand there twice."""
    files_sha256: dict[str, str]
    """Every other file of the folder, by its path in it; items.jsonl is one of them."""


def benchmark_directory(root: Path, name: str) -> Path:
    """Return the folder of a benchmark under the folder of prepared data (`data.prepared_root`)."""
    return root / "benchmarks" / name


def items_file(root: Path, name: str) -> Path:
    """Return the file with a prepared benchmark's items."""
    return benchmark_directory(root, name) / ITEMS_NAME


def missing(root: Path, names: Iterable[str]) -> list[str]:
    """Return one sentence for each benchmark that is unknown, not prepared, of another version or changed; else none.

    Reads and hashes every file of the benchmarks that are named: a few MB each.
    """
    sentences = []
    for name in names:
        if name not in BENCHMARKS:
            sentences.append(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
        elif fault := _fault(benchmark_directory(root, name), name):
            command = shlex.join(["python", "-m", "eval.prepare", name, "--root", str(root)])
            sentences.append(f"benchmark {name}: {fault}; `{command}` prepares it")
    return sentences


def read_manifest(directory: Path) -> BenchmarkManifest:
    """Return the manifest of a prepared benchmark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    return typed(BenchmarkManifest, read_json(directory / MANIFEST_NAME))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(directory: Path, name: str) -> str | None:
    """Return what is wrong with a prepared benchmark, or None."""
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        return f"{directory} is not prepared"
    except (OSError, ValueError) as error:
        return f"{directory / MANIFEST_NAME} cannot be used ({error})"
    version = BENCHMARKS[name].version
    if (manifest.name, manifest.version) != (name, version):
        return f"{directory} holds {manifest.name} version {manifest.version}, this is version {version}"
    # Also what is there too much: a package's folder is imported from.
    found = set(_files(directory)) - {MANIFEST_NAME}
    if differing := found ^ set(manifest.files_sha256):
        return f"{directory}: {min(differing)} is there and not in the manifest, or the other way round"
    for path, sha256 in manifest.files_sha256.items():
        file = directory / path
        try:
            # A pipe in a file's place would wait for ever.
            if not file.is_file() or sha256_of(file) != sha256:
                return f"{file} was changed"
        except OSError as error:
            return f"{file} cannot be read ({error})"
    return None


def _files(directory: Path) -> Iterator[str]:
    for folder, _, names in os.walk(directory):
        for name in names:
            yield (Path(folder) / name).relative_to(directory).as_posix()

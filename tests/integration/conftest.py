"""What whole-run tests share: an uninterrupted smoke run, and a server that forks ranks instead of starting them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.drills.starts import ForkServer
from tests.integration.running import SMOKE, Finished, only_run, submit_to_end


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    directory: Path
    finished: Finished
    overrides: list[str]
    """What it was started with, less run.root, and without wandb."""


@pytest.fixture(scope="session")
def prepared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of these tests share their prepared data."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> Reference:
    root = tmp_path_factory.mktemp("reference")
    overrides = [*SMOKE, f"data.prepared_root={prepared_root}"]
    words = [*overrides, "reporting.wandb.mode=offline", f"run.root={root}"]
    finished = submit_to_end(words, folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return Reference(directory=only_run(root), finished=finished, overrides=overrides)


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a drill's runs, which share their prepared data."""
    return tmp_path_factory.mktemp("drill")

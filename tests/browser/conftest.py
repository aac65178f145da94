"""What browser tests share: one Chromium, one real run, and one made run with every kind of record."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.chromium import chromium, chromium_path
from tests.integration.running import only_run, submit_to_end
from tests.unit.reporting.example_full_run import write_full_example
from training.reporting.report.page import write_report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    if path is None:
        pytest.skip("there is no chromium; `make packages` installs it on Debian as root")
    with chromium(path) as browser:
        yield browser


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages on two processes, as `launch.submit` left it."""
    root = tmp_path_factory.mktemp("real")
    words = ["experiment=smoke", f"run.root={root / 'runs'}", f"data.prepared_root={root / 'prepared'}"]
    statistics = [f"reporting.{what}_every_steps=2" for what in ("layers", "experts", "memory")]
    finished = submit_to_end([*words, *statistics], folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return only_run(root / "runs")


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made run that has what a smoke run has not: experts, profiles, incidents, three attempts."""
    run_directory = write_full_example(tmp_path_factory.mktemp("full") / "mixture-of-experts-7")
    write_report(run_directory)
    return run_directory

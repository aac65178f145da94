"""The fault matrix as a command: a few of its cheap rows, and that its table notices what is not right.

All rows: `python -m tests.drills.faults`.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.disturbed import CRASH_SEEN_SECONDS, Disturbed, Ground, Line
from tests.drills.faults import ROWS, chosen, markdown, run_rows, table, verdict
from tests.drills.moments import Place
from tests.drills.starts import REPOSITORY, ForkServer

LIMIT_SECONDS = 300
CHEAP = ("K2", "H4", "D4")


def test_the_matrix_has_every_row_of_its_sections() -> None:
    wanted = ["K1", "K2", "K3", "K4", "K5", "H1", "H2", "H3", "H4", "P1", "P2", "D1", "D2", "D3", "D4"]
    assert list(ROWS) == [*wanted, "T1", "T2", "L1", "L2", "N1", "N2", "E1", "M1"]
    assert chosen(["T", "K1"], with_slurm=False) == ["K1", "T1", "T2"]
    assert "K3" not in chosen([], with_slurm=False)
    assert chosen([], with_slurm=True) == list(ROWS)
    with pytest.raises(ValueError, match="no row X9"):
        chosen(["X9"], with_slurm=False)


def test_cheap_rows_are_right_and_the_table_says_so(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    command = [sys.executable, "-m", "tests.drills.faults", *CHEAP, "--write", str(page)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" | ") for line in page.read_text().splitlines() if re.match(r"\| [A-Z]\d", line)]
    assert {line[0].removeprefix("| ") for line in lines} == set(CHEAP)
    assert all(line[6] in ("right", "not run") for line in lines), page.read_text()
    killed = next(line for line in lines if line[0] == "| K2")
    assert float(killed[3]) < CRASH_SEEN_SECONDS
    assert float(killed[4]) > float(killed[3])
    assert killed[5] == "yes"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def test_a_run_that_ends_otherwise_or_a_moment_that_never_comes_is_noticed(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground(server, tmp_path)
    step = ground.reference.stage_ends[0] - 1

    def other_numbers(ground: Ground) -> Iterator[Line]:
        """K9: undisturbed, but compared with a run of other numbers."""
        ground.reference.steps[step] = ("other", *ground.reference.steps[step][1:])
        run = Disturbed(ground)
        run.start()
        run.disturb(lambda: None)
        run.go_to_end()
        yield run.line("K9", "nothing", "nothing")

    def never(ground: Ground) -> Iterator[Line]:
        """K8: waits for a step that the run does not have."""
        run = Disturbed(ground)
        run.start()
        run.reach(Place.training, count=10**6)
        yield run.line("K8", "nothing", "nothing")

    monkeypatch.setitem(ROWS, "K9", [other_numbers])
    monkeypatch.setitem(ROWS, "K8", [never])
    lines = list(run_rows(ground, ["K8", "K9"]))
    assert [verdict(line) for line in lines] == ["WRONG", "WRONG"]
    assert "never came" in lines[0].wrong[0]
    assert lines[1].equal == "NO"
    assert f"step {step} of attempt 0" in table(lines)
    assert "| NO | WRONG |" in markdown(lines, command="", seconds=0)


@pytest.mark.parametrize("late", ["seen", "gone"])
def test_what_is_seen_or_gone_too_late_is_noticed(
    late: str, server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Disturbed(Ground(server, tmp_path))
    monkeypatch.setattr("tests.drills.disturbed.ORPHANS_GONE_SECONDS", 0.0 if late == "gone" else 5.0)
    run.start()
    run.reach(Place.training, count=1)
    run.disturb(lambda: run.started.kill("rank 1"))
    run.see_end(victims=["rank 1"], seen_within=0.0 if late == "seen" else CRASH_SEEN_SECONDS)
    line = run.line("K1", "rank 1 dies", "kill -9")
    assert verdict(line) == "WRONG"
    assert [sentence.partition(":")[0] for sentence in line.wrong] == [late]

"""A run that was killed goes on with other processes or another layout, and trains on the same data to the same end."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import last_checkpoint, ledger, records
from tests.integration.running import kill, only_run, run_directories, submit, submit_to_end


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    saved_step: int
    """It is killed when this checkpoint is committed and two more steps are done."""
    changes: tuple[str, ...]
    """Overrides of the second start."""
    changed: dict[str, str]
    """Keys that config_changed must name, with their old and new values."""
    layouts: dict[str, str]
    """Training stage -> layout that its last start trained under."""

    def moment_has_come(self, run: Path) -> bool:
        is_saved = (run / "checkpoints" / f"step-{self.saved_step:08d}").is_dir()
        return is_saved and len(records(run, "step")) >= self.saved_step + 2


CASES = {
    "twice as many processes": Case(
        saved_step=4,  # of 9 in the first training stage
        changes=("cluster.processes_per_node=4",),
        changed={"cluster.processes_per_node": "2 became 4"},
        layouts={
            "pretrain": "pipeline 1 × data 4, ZeRO-3, 4 ranks",
            "anneal": "pipeline 2 × data 2, ZeRO-3, 4 ranks",
        },
    ),
    "no pipeline": Case(
        saved_step=12,  # of 10 to 15 in the second one
        changes=("parallel@stages.anneal.parallel=zero3",),
        changed={"stages.anneal.parallel.pipeline": "2 became 1"},
        layouts={
            "pretrain": "pipeline 1 × data 2, ZeRO-3, 2 ranks",
            "anneal": "pipeline 1 × data 2, ZeRO-3, 2 ranks",
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_killed_run_goes_on_under_another_layout(case: Case, reference: Reference, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    overrides = [*reference.overrides, f"run.root={root}"]
    with submit(overrides, folder=tmp_path) as job:
        job.wait_until(lambda: any(case.moment_has_come(run) for run in run_directories(root)))
        kill(job.ranks()[1])
        assert job.survivors(within_seconds=30) == []
        assert job.wait(limit_seconds=30).exit_code != 0
    run = only_run(root)
    newest = last_checkpoint(run)
    assert newest.name in (f"step-{case.saved_step:08d}", f"step-{case.saved_step + 4:08d}"), "killed too late"

    finished = submit_to_end([*overrides, f"run.id={run.name}", "resume=auto", *case.changes], folder=tmp_path)

    assert finished.exit_code == 0, finished.explain()
    assert only_run(root) == run
    assert ledger(run)["state"] == "done"
    assert messages(run, "restart") == [f"continues from {newest.name}"]
    assert {f"{key}: {words}" for key, words in case.changed.items()} <= set(messages(run, "config_changed"))
    begun = [record for record in records(run, "stage") if record["event"] == "begin"]
    assert {record["stage"]: record["layout"] for record in begun} == case.layouts
    (first, *_) = [record for record in begun if record["attempt"] == 1]
    assert any(note.startswith(f"state of {newest.name}: rank 0 read its share, ") for note in first["notes"])
    compare_steps(run, reference.directory)


def messages(run: Path, what: str) -> list[str]:
    return [record["message"] for record in records(run, "incident") if record["what"] == what]


def compare_steps(run: Path, reference: Path) -> None:
    """Every step of the run, each time it was done, is the reference's: the same samples, the same loss."""
    expected = {step["step"]: step for step in records(reference, "step")}
    steps = records(run, "step")
    assert {step["step"] for step in steps} == expected.keys()
    for step in steps:
        wanted = expected[step["step"]]
        assert step["batch_id"] == wanted["batch_id"], step
        assert step["tokens"] == wanted["tokens"]
        assert step["lr"] == wanted["lr"]
        assert step["loss"] == pytest.approx(wanted["loss"], rel=1e-5), step
        assert step["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3), step

"""A run in two starts, one training stage each, is the run in one."""

import sys
from pathlib import Path

from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records, stage_status
from tests.integration.running import only_run, run_to_end, submit_to_end


def test_a_start_that_ends_after_a_training_stage_is_continued_to_the_same_bits(
    reference: Reference, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    finished = submit_to_end([*reference.overrides, f"run.root={root}", "run.until=pretrain"], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    assert (ledger(run)["state"], stage_status(run, "pretrain")) == ("running", "promoted")
    assert stage_status(run, "anneal") == "pending"
    assert [record["event"] for record in records(run, "stage") if record["stage"] == "run"] == ["until"]

    # The words beside a run directory win over what it was frozen with.
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2"]
    words = ["-m", "training.train", str(run), "resume=auto", "run.until=anneal"]
    finished = run_to_end([*torchrun, *words], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    assert ledger(run)["state"] == "done"
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(reference.directory))

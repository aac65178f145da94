"""A run whose numbers overflow stops by itself, says where it began, and has used none of the bad steps."""

from pathlib import Path

from tests.integration.reading import records
from tests.integration.running import SMOKE, only_run, submit_to_end
from training.errors import ExitCode

SHORT = [*SMOKE, "stages.pretrain.tokens=512", "stages.pretrain.gate=null", "stages.anneal.gate=null"]
"""One step, then the pipeline over ZeRO-3."""


def test_a_run_that_overflows_ends_with_its_own_code_after_the_allowed_skips(
    tmp_path: Path, prepared_root: Path
) -> None:
    overrides = [*SHORT, "+stages.anneal.lr=1e30", "fault_tolerance.max_consecutive_skips=2"]
    places = [f"run.root={tmp_path}", f"data.prepared_root={prepared_root}"]
    finished = submit_to_end([*overrides, *places], folder=tmp_path / "output")
    assert finished.exit_code == ExitCode.NON_FINITE, finished.explain()
    assert "2 steps in a row had NaN or Inf gradients" in finished.stderr
    run = only_run(tmp_path)
    steps = [step for step in records(run, "step") if step["stage"] == "anneal"]
    assert [step["skipped"] for step in steps] == [False, True, True]
    incidents = [incident for incident in records(run, "incident") if incident["what"] == "non_finite"]
    assert len(incidents) == 2
    for incident in incidents:
        assert "rank 1, pipeline stage 1, micro-batch 0, " in incident["message"]
        assert ".weight" in incident["message"]

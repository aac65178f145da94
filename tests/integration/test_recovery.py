"""Poisoned batches in real runs of two ranks: NaN on one of them, a huge loss; held back or undone, also after a kill.

The first training stage runs under ZeRO-3, the second as a pipeline over it. Faults belong to a sample (see
training/fault_tolerance/poisoned.py), 8 samples make a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.drills.starts import ForkServer
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import SMOKE
from training.config.load import compose
from training.config.run_directory import create
from training.errors import ExitCode

BATCH, TOKENS = 8, 8 * 64
STEPS = (14, 8)
SPIKE_AT = 11
"""Step of the first training stage whose batch is poisoned; checkpoints are saved at 3, 6, 9, …"""
SPIKE = f"logits=1e4:*:{BATCH * (SPIKE_AT - 1) + 3}"
ROLLBACK = ["fault_tolerance.recovery.on_loss_spike=rollback"]
SKIP = ["fault_tolerance.recovery.on_loss_spike=skip"]
LIMIT_SECONDS = 100


@dataclass(frozen=True, slots=True)
class Ran:
    directory: Path
    exit_codes: list[int]
    """Of each start's launcher."""
    output: str

    def steps(self) -> dict[int, tuple[Any, ...]]:
        return numbers_by_step(records(self.directory, "step"))

    def batch_ids(self) -> list[str]:
        latest = {step["step"]: step["batch_id"] for step in records(self.directory, "step")}
        return [latest[step] for step in sorted(latest)]

    def incidents(self, what: str) -> list[dict[str, Any]]:
        return [incident for incident in records(self.directory, "incident") if incident["what"] == what]


def run(server: ForkServer, root: Path, overrides: Sequence[str], *environments: dict[str, str]) -> Ran:
    """Start a new run once for each environment, each start going on from the one before."""
    words = [
        *SMOKE,
        f"data.prepared_root={root / 'prepared'}",
        f"run.root={root / 'runs'}",
        "eval.at_start=false",
        "checkpoint.every_steps=3",
        "checkpoint.keep_last=3",
        "fault_tolerance.recovery.window_steps=8",
        "fault_tolerance.recovery.min_steps=5",
        *(
            f"stages.{name}.{key}"
            for name, steps in zip(("pretrain", "anneal"), STEPS, strict=True)
            for key in (f"tokens={steps * TOKENS}", "eval_suite=null", "gate=null")
        ),
        *overrides,
    ]
    directory = create(compose(words), words)
    output, codes = directory / "output", []
    for environment in environments:
        started = server.start(directory, world_size=2, output=output, environment=environment)
        left = server.wait(LIMIT_SECONDS)
        started.close()
        assert not left.processes, f"it hangs: {output.read_text(errors='replace')[-4000:]}"
        codes.append(left.exit_codes[started.launcher])
    return Ran(directory=directory, exit_codes=codes, output=output.read_text(errors="replace"))


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, root: Path) -> Ran:
    ran = run(server, root, [], {})
    assert ran.exit_codes == [0], ran.output[-4000:]
    assert records(ran.directory, "incident") == []
    return ran


def test_a_rollback_is_the_run_without_that_batch_and_the_same_after_a_kill(
    server: ForkServer, root: Path, undisturbed: Ran
) -> None:
    poison = {"AUTARKY_POISON": SPIKE}
    # Killed after the rollback and before a checkpoint carries it: the next start meets the spike again.
    killed = poison | {"AUTARKY_FAULT": "snapshot_taken:1:12"}
    straight, again, resumed = (
        run(server, root, ROLLBACK, *starts) for starts in ([poison], [poison], [killed, poison])
    )
    assert straight.exit_codes == again.exit_codes == [0], straight.output[-4000:]
    assert resumed.exit_codes[0] != 0
    assert resumed.exit_codes[1] == 0, resumed.output[-4000:]
    assert len(straight.incidents("rollback")) == 1
    assert len(resumed.incidents("rollback")) == 2
    assert straight.incidents("rollback")[0]["step"] == SPIKE_AT
    assert (
        f"back to step {SPIKE_AT - 1}; batches 10 to 10 of pretrain are left out"
        in (straight.incidents("rollback")[0]["message"])
    )
    assert straight.steps() == again.steps() == resumed.steps()
    assert contents(last_checkpoint(straight.directory)) == contents(last_checkpoint(resumed.directory))
    # Up to the spike it is the undisturbed run; from there every step has the batch of the one after, in the second
    # training stage too: what was drawn in the first is not drawn again.
    before = SPIKE_AT - 1
    expected = undisturbed.steps()
    assert all(straight.steps()[step] == expected[step] for step in range(1, before + 1))
    first_stage = STEPS[0]
    assert straight.batch_ids()[before : first_stage - 1] == undisturbed.batch_ids()[before + 1 : first_stage]
    assert len(set(straight.batch_ids())) == sum(STEPS)
    assert undisturbed.batch_ids()[before] not in straight.batch_ids()
    progress = contents(last_checkpoint(straight.directory))["progress"]
    assert [(w.training_stage, w.first_batch, w.num_batches) for w in progress.left_out] == [("pretrain", before, 1)]
    assert progress.optimizer_updates == sum(STEPS)
    assert ledger(straight.directory)["state"] == "done"


def test_a_rollback_drops_the_batches_before_it_too_if_asked_for_and_forgets_later_checkpoints(
    server: ForkServer, root: Path
) -> None:
    more = [*ROLLBACK, "fault_tolerance.recovery.rewind_steps=3"]
    ran = run(server, root, more, {"AUTARKY_POISON": SPIKE})
    assert ran.exit_codes == [0], ran.output[-4000:]
    (incident,) = ran.incidents("rollback")
    assert "back to step 7; batches 7 to 10 of pretrain are left out" in incident["message"]
    assert [i["message"] for i in ran.incidents("restart")] == ["continues from step-00000006"]


def test_a_rollback_needs_nothing_of_the_engine_so_deepspeeds_pipeline_can_too(server: ForkServer, root: Path) -> None:
    more = [*ROLLBACK, "parallel@stages.anneal.parallel=pipeline"]
    step = STEPS[0] + 7
    poison = {"AUTARKY_POISON": f"logits=1e4:*:{BATCH * (step - 1) + 3}"}
    straight = run(server, root, more, poison)
    resumed = run(server, root, more, poison | {"AUTARKY_FAULT": "snapshot_taken:1:21"}, poison)
    assert straight.exit_codes == [0], straight.output[-4000:]
    assert resumed.exit_codes[1] == 0, resumed.output[-4000:]
    (incident,) = straight.incidents("rollback")
    assert incident["step"] == step
    assert f"back to step {step - 1}; batches 6 to 6 of anneal are left out" in incident["message"]
    assert straight.steps() == resumed.steps()
    assert contents(last_checkpoint(straight.directory)) == contents(last_checkpoint(resumed.directory))


def test_a_spike_before_the_first_checkpoint_goes_back_to_the_start(server: ForkServer, root: Path) -> None:
    more = [*ROLLBACK, "checkpoint.every_steps=13"]
    ran = run(server, root, more, {"AUTARKY_POISON": SPIKE})
    assert ran.exit_codes == [0], ran.output[-4000:]
    assert [i["message"] for i in ran.incidents("restart")] == ["continues from the start"]
    assert len(ran.steps()) == sum(STEPS)


@pytest.mark.parametrize("step", [SPIKE_AT, STEPS[0] + 7], ids=["ZeRO-3", "pipeline"])
def test_a_skipped_spike_changes_nothing_and_the_same_after_a_kill(
    server: ForkServer, root: Path, undisturbed: Ran, step: int
) -> None:
    poison = {"AUTARKY_POISON": f"logits=1e4:*:{BATCH * (step - 1) + 3}"}
    straight = run(server, root, SKIP, poison)
    assert straight.exit_codes == [0], straight.output[-4000:]
    killed = poison | {"AUTARKY_FAULT": f"before_commit:0:{step // 3 * 3 + 3 if step < STEPS[0] else sum(STEPS)}"}
    resumed = run(server, root, SKIP, killed, poison)
    assert resumed.exit_codes[0] != 0
    assert resumed.exit_codes[1] == 0, resumed.output[-4000:]
    assert straight.steps() == resumed.steps()
    assert contents(last_checkpoint(straight.directory)) == contents(last_checkpoint(resumed.directory))
    assert [record["step"] for record in records(straight.directory, "step") if record["skipped"]] == [step]
    (incident,) = straight.incidents("loss_spike")
    assert "robust sigmas above" in incident["message"]
    assert straight.batch_ids() == undisturbed.batch_ids()
    expected = undisturbed.steps()
    assert all(straight.steps()[before] == expected[before] for before in range(1, step))
    assert contents(last_checkpoint(straight.directory))["progress"].optimizer_updates == sum(STEPS) - 1


@pytest.mark.parametrize("step", [1, SPIKE_AT, STEPS[0] + 2], ids=["first step", "ZeRO-3", "pipeline"])
@pytest.mark.parametrize("fault", ["logits=nan", "gradient=inf"])
def test_one_nan_on_one_rank_costs_one_step_on_all(server: ForkServer, root: Path, fault: str, step: int) -> None:
    ran = run(server, root, [], {"AUTARKY_POISON": f"{fault}:1:{BATCH * (step - 1) + 2}"})
    assert ran.exit_codes == [0], ran.output[-4000:]
    assert [record["step"] for record in records(ran.directory, "step") if record["skipped"]] == [step]
    (incident,) = ran.incidents("non_finite")
    assert "rank 1, " in incident["message"]
    assert "rank 0, " not in incident["message"]
    progress = contents(last_checkpoint(ran.directory))["progress"]
    assert progress.optimizer_updates == sum(STEPS) - 1
    assert all(map(float, progress.losses))


def test_nan_in_every_step_stops_the_run_and_leaves_nothing_behind(server: ForkServer, root: Path) -> None:
    ran = run(server, root, [], {"AUTARKY_POISON": "gradient=nan:0:*"})
    assert ran.exit_codes == [ExitCode.NON_FINITE]
    assert "3 steps in a row had NaN or Inf gradients" in ran.output
    assert len(ran.incidents("non_finite")) == 3


def test_spikes_that_do_not_end_stop_the_run(server: ForkServer, root: Path) -> None:
    settings = [*SKIP, "fault_tolerance.recovery.threshold_sigmas=1e-9", "fault_tolerance.max_consecutive_skips=1"]
    ran = run(server, root, settings, {"AUTARKY_POISON": SPIKE})
    assert ran.exit_codes == [ExitCode.NON_FINITE]
    assert "LossSpike: step" in ran.output

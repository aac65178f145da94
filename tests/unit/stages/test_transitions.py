import pytest

from training.stages.ledger import GateOutcome, IllegalTransition, Ledger, RunState, StageEntry, StageStatus
from training.stages.transitions import (
    baseline_report,
    begun,
    current_stage,
    done,
    evaluated,
    failed,
    gated,
    next_look,
    promoted_without_gate,
    rewound,
    rolled_back,
    started,
    stopped,
    trained,
    wants_more_items,
    with_start_evaluation,
)

CHECKPOINT = "checkpoints/step-00000100"
PROMOTE = GateOutcome(decision="promote", reasons=("fine",))
BLOCK = GateOutcome(decision="block", reasons=("too high",))


def fresh() -> Ledger:
    return started(Ledger(stages=(StageEntry(name="pretrain"), StageEntry(name="anneal"))))


def pretrain_evaluated() -> Ledger:
    ledger = trained(begun(fresh(), "pretrain"), "pretrain", CHECKPOINT)
    return evaluated(ledger, "pretrain", "eval/pretrain/quick.json", {"bits_per_byte": 2.5})


def test_a_run_walks_through_all_its_training_stages() -> None:
    ledger = gated(pretrain_evaluated(), "pretrain", PROMOTE)
    current = current_stage(ledger)
    assert current is not None
    assert current.name == "anneal"
    ledger = promoted_without_gate(trained(begun(ledger, "anneal"), "anneal", CHECKPOINT), "anneal")
    assert current_stage(ledger) is None
    assert done(ledger).state is RunState.done


def test_transitions_leave_the_ledger_they_start_from_as_it_was() -> None:
    ledger = fresh()
    begun(ledger, "pretrain")
    assert ledger == fresh()


def test_a_gate_that_blocks_blocks_the_run_and_may_decide_again_in_the_next_attempt() -> None:
    blocked = gated(pretrain_evaluated(), "pretrain", BLOCK)
    assert (blocked.state, blocked.entry("pretrain").status) == (RunState.blocked, StageStatus.blocked)
    with pytest.raises(IllegalTransition):
        begun(blocked, "anneal")
    again = started(blocked)
    assert (again.state, again.attempt) == (RunState.running, 1)
    with pytest.raises(IllegalTransition):
        begun(again, "anneal")
    promoted = gated(again, "pretrain", PROMOTE)
    assert begun(promoted, "anneal").entry("anneal").status is StageStatus.training


def test_a_stopped_run_may_start_again_and_only_a_running_one_can_stop() -> None:
    ledger = begun(fresh(), "pretrain")
    again = started(stopped(ledger))
    assert (stopped(ledger).state, again.state, again.attempt) == (RunState.stopped, RunState.running, 1)
    assert again.stages == ledger.stages
    with pytest.raises(IllegalTransition):
        stopped(stopped(ledger))


def test_the_first_start_is_attempt_0_and_a_failed_run_may_start_again() -> None:
    assert fresh().attempt == 0
    assert started(failed(fresh())).attempt == 1
    with pytest.raises(IllegalTransition):
        begun(failed(fresh()), "pretrain")


def test_the_report_of_an_earlier_evaluation_is_known_if_it_was_made() -> None:
    ledger = with_start_evaluation(fresh(), "eval/start/quick.json", {"bits_per_byte": 8.0})
    assert baseline_report(ledger, "start") == "eval/start/quick.json"
    assert baseline_report(ledger, "pretrain") is None
    assert baseline_report(pretrain_evaluated(), "start") is None
    assert baseline_report(pretrain_evaluated(), "pretrain") == "eval/pretrain/quick.json"


def test_a_larger_evaluation_is_made_only_if_the_gate_asked_for_it() -> None:
    ledger = pretrain_evaluated()
    with pytest.raises(IllegalTransition, match="nobody asked"):
        evaluated(ledger, "pretrain", "eval/pretrain/quick-look-2.json", {})
    asked = gated(ledger, "pretrain", GateOutcome(decision="more_items", reasons=("unclear",)))
    assert (asked.state, asked.entry("pretrain").status) == (RunState.running, StageStatus.evaluated)
    assert (wants_more_items(asked, "pretrain"), next_look(asked, "pretrain")) == (True, 2)
    again = evaluated(asked, "pretrain", "eval/pretrain/quick-look-2.json", {})
    assert (wants_more_items(again, "pretrain"), next_look(again, "pretrain")) == (False, 3)


def test_a_training_stage_that_is_rolled_back_is_pending_and_what_was_known_of_it_is_kept() -> None:
    outcome = GateOutcome(decision="roll_back", reasons=("too high",))
    blocked = gated(pretrain_evaluated(), "pretrain", outcome)
    assert (blocked.state, blocked.entry("pretrain").status) == (RunState.blocked, StageStatus.blocked)
    back = rolled_back(blocked, "pretrain")
    assert back.entry("pretrain") == StageEntry(name="pretrain")
    assert back.state is RunState.blocked
    (left,) = back.rolled_back
    assert (left.gate, left.checkpoint) == (outcome, f"{CHECKPOINT}.rolled-back-1")
    assert left.evaluation is not None
    assert left.evaluation.path == "eval/pretrain.rolled-back-1/quick.json"
    # A start that was killed before this was written down comes to the same.
    assert rolled_back(started(blocked), "pretrain").rolled_back == back.rolled_back
    assert begun(started(back), "pretrain").entry("pretrain").status is StageStatus.training
    for ledger in (
        pretrain_evaluated(),
        gated(pretrain_evaluated(), "pretrain", GateOutcome(decision="block", reasons=())),
    ):
        with pytest.raises(IllegalTransition, match="did not roll it back"):
            rolled_back(ledger, "pretrain")


def test_illegal_arrows_raise() -> None:
    training = begun(fresh(), "pretrain")
    is_trained = trained(training, "pretrain", CHECKPOINT)
    arrows = {
        "second stage first": lambda: begun(fresh(), "anneal"),
        "begun twice": lambda: begun(training, "pretrain"),
        "trained before begun": lambda: trained(fresh(), "pretrain", CHECKPOINT),
        "evaluated before trained": lambda: evaluated(training, "pretrain", "eval/x.json", {}),
        "gate before evaluation": lambda: gated(is_trained, "pretrain", PROMOTE),
        "promoted before trained": lambda: promoted_without_gate(training, "pretrain"),
        "done too early": lambda: done(is_trained),
        "start evaluation of a trained model": lambda: with_start_evaluation(is_trained, "eval/x.json", {}),
        "not started": lambda: begun(Ledger(stages=(StageEntry(name="pretrain"),)), "pretrain"),
    }
    for name, arrow in arrows.items():
        with pytest.raises(IllegalTransition):
            pytest.fail(f"{name}: {arrow()}")


def test_rewinding_trains_a_stage_again_and_forgets_all_that_came_after_it() -> None:
    ledger = begun(gated(pretrain_evaluated(), "pretrain", PROMOTE), "anneal")
    again = rewound(ledger, "pretrain")
    assert [entry.status for entry in again.stages] == [StageStatus.training, StageStatus.pending]
    assert [(entry.checkpoint, entry.evaluation, entry.gate) for entry in again.stages] == [(None, None, None)] * 2
    trained_again = trained(again, "pretrain", CHECKPOINT)
    assert trained_again.entry("pretrain").status is StageStatus.trained
    assert trained_again.attempt == ledger.attempt


def test_rewinding_to_a_stage_that_is_not_trained_changes_nothing() -> None:
    assert rewound(fresh(), "pretrain") == fresh()
    ledger = begun(gated(pretrain_evaluated(), "pretrain", PROMOTE), "anneal")
    assert rewound(ledger, "anneal") == ledger


def test_a_done_run_is_not_started_again() -> None:
    only = trained(begun(started(Ledger(stages=(StageEntry(name="a"),))), "a"), "a", CHECKPOINT)
    with pytest.raises(IllegalTransition):
        started(done(promoted_without_gate(only, "a")))


def test_an_unknown_training_stage_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        begun(fresh(), "pretrian")


def test_entries_that_claim_more_than_they_show_cannot_be_made() -> None:
    for status in (StageStatus.trained, StageStatus.evaluated, StageStatus.promoted, StageStatus.blocked):
        with pytest.raises(IllegalTransition):
            StageEntry(name="a", status=status)
    with pytest.raises(IllegalTransition):
        StageEntry(name="a", status=StageStatus.evaluated, checkpoint=CHECKPOINT)
    with pytest.raises(IllegalTransition):
        StageEntry(name="a", status=StageStatus.blocked, checkpoint=CHECKPOINT)

"""Gates over real reports; here there is one rank, tests/integration/test_gate.py has two."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.evidence import decide_from_reports
from eval.harness import write_report
from tests.unit.eval.test_harness import DATA, SUITE, lm
from tests.unit.eval.tiny import report_of
from training.config.approval import Answer, Approval, sha256_of, write_approval
from training.config.gate_schema import GateAction, GateCondition, GateConfig, Metric
from training.config.load import compose
from training.engine.process_group import ProcessGroup
from training.errors import DataError
from training.stages.gatekeeper import Gatekeeper
from training.stages.ledger import Ledger, StageEntry, StageStatus
from training.stages.transitions import begun, evaluated, gated, started, trained, with_start_evaluation

STAGE = "pretrain"
REPORT = "eval/pretrain/quick.json"
STRICT = GateCondition(metric=Metric.bits_per_byte, at_most=0.01)


@pytest.fixture
def keeper(processes: ProcessGroup, tmp_path: Path) -> Gatekeeper:
    for seed, path in enumerate(("eval/start/quick.json", REPORT)):
        write_report(report_of(lm(seed), DATA, SUITE), tmp_path / path)
    return Gatekeeper(
        config=compose(["experiment=demo"]),
        run_directory=tmp_path,
        processes=processes,
        decide=lambda gate, report, baselines, look: decide_from_reports(gate, report, baselines, look=look),
    )


def asks(keeper: Gatekeeper, **gate: Any) -> Gatekeeper:
    config = keeper.config
    stages = {STAGE: replace(config.stages[STAGE], gate=GateConfig(**gate)), "anneal": config.stages["anneal"]}
    return replace(keeper, config=replace(config, stages=stages))


def ledger() -> Ledger:
    fresh = started(Ledger(stages=(StageEntry(name=STAGE), StageEntry(name="anneal"))))
    begin = begun(with_start_evaluation(fresh, "eval/start/quick.json", {}), STAGE)
    return evaluated(trained(begin, STAGE, "checkpoints/step-00000001"), STAGE, REPORT, {})


def test_a_gate_compares_with_the_evaluation_that_it_names(keeper: Gatekeeper) -> None:
    condition = GateCondition(metric=Metric.bits_per_byte, compared_with="previous", margin=100.0)
    outcome = asks(keeper, conditions={"no_worse": condition}).ask(ledger(), STAGE)
    assert outcome.decision == GateAction.promote
    assert outcome.reasons[0].startswith("bits_per_byte less that of previous is ")
    assert outcome.numbers[0]["num_items"] == SUITE.held_out_documents


@pytest.mark.parametrize(("answer", "decision"), [(Answer.approve, "promote"), (Answer.reject, "block")])
def test_a_person_decides_about_the_report_that_was_judged(answer: Answer, decision: str, keeper: Gatekeeper) -> None:
    keeper = asks(keeper, conditions={"quality": STRICT}, when_missed=GateAction.ask)
    assert keeper.ask(ledger(), STAGE).decision == GateAction.ask
    report = keeper.run_directory / REPORT
    approval = Approval(answer=answer, by="Ada", because="so", time="now", report_sha256=sha256_of(report))
    write_approval(keeper.run_directory, STAGE, approval)
    outcome = keeper.ask(ledger(), STAGE)
    assert (outcome.decision, outcome.reasons[-1]) == (decision, approval.reason)
    write_report(report_of(lm(2), DATA, SUITE), report)
    assert keeper.ask(ledger(), STAGE).decision == GateAction.ask, "another report, another question"


def test_a_larger_evaluation_that_found_no_more_items_is_the_last(keeper: Gatekeeper) -> None:
    accuracy = GateCondition(metric=Metric.multiple_choice_accuracy, at_least=0.4)
    keeper = asks(keeper, conditions={"answers": accuracy}, when_unclear=GateAction.more_items, max_looks=5)
    first = keeper.ask(ledger(), STAGE)
    assert (first.decision, first.look) == (GateAction.more_items, 1)
    again = evaluated(gated(ledger(), STAGE, first), STAGE, REPORT, {})
    second = keeper.ask(again, STAGE)
    assert (second.decision, second.look) == (GateAction.block, 2)
    assert "no more items" in second.reasons[-1]
    assert gated(again, STAGE, second).entry(STAGE).status is StageStatus.blocked


def test_a_report_that_is_gone_is_an_error_of_every_rank(keeper: Gatekeeper) -> None:
    (keeper.run_directory / REPORT).unlink()
    with pytest.raises(DataError, match=r"quick\.json is no report"):
        asks(keeper, conditions={"quality": STRICT}).ask(ledger(), STAGE)

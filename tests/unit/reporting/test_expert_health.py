"""What a person is told about a run's experts."""

from dataclasses import replace

from tests.unit.reporting.example_run import step_record
from training.reporting.expert_health import expert_health
from training.reporting.records import ExpertsRecord, StepRecord
from training.reporting.wandb_rows import WandbRows

WELL = {
    "worst_load": 1.2,
    "worst_block": 3.0,
    "dead": 0.0,
    "worst_rank_load": 1.1,
    "entropy": 1.5,
    "entropy_of_even": 0.7,
    "balance_loss": 0.01,
    "z_loss": 0.0,
}


def steps(**changes: float) -> list[StepRecord]:
    return [replace(step_record(step), experts=WELL | changes) for step in range(1, 301)]


def test_of_a_dense_model_nothing_is_said() -> None:
    assert expert_health([step_record(1)]) == ""


def test_well_balanced_experts_need_no_advice() -> None:
    assert expert_health(steps()).startswith("experts, mean of the last 20 steps: busiest 1.20 times the mean (block 3")
    assert "->" not in expert_health(steps())


def test_crowds_a_collapse_and_an_undecided_router_get_advice() -> None:
    assert "bias_update_rate" in expert_health(steps(dead=2.0))
    assert "balance_loss" in expert_health(steps(worst_load=4.0))
    assert "z_loss" in expert_health(steps(entropy_of_even=0.1))
    assert "learning rate" in expert_health(steps(entropy_of_even=0.99))
    assert "learning rate" not in expert_health(steps(entropy_of_even=0.99)[:50]), "it has only begun"


def test_a_record_of_all_loads_names_the_dead_and_the_crowded() -> None:
    loads = [[10, 10, 10, 10, 10], [0, 42, 3, 3, 2], [0, 0, 50, 0, 0]]
    words = expert_health(steps(), ExpertsRecord(step=300, stage="pretrain", attempt=0, loads=loads))
    assert "-> without a token at step 300 (block.expert): 1.0, 2.0, 2.1, 2.3 and 1 more" in words
    assert "-> crowded at step 300 (block.expert): 2.2 (5.0 times the mean), 1.1 (4.2 times the mean)" in words
    even = ExpertsRecord(step=300, stage="pretrain", attempt=0, loads=loads[:1])
    assert "->" not in expert_health(steps(), even)


def test_wandb_has_them_under_a_name_of_their_own() -> None:
    row = WandbRows().row(steps()[0])
    assert row["experts/worst_load"] == 1.2
    assert "train/experts" not in row
    assert "experts/dead" not in WandbRows().row(step_record(1))

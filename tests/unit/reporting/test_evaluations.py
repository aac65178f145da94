from dataclasses import replace

from tests.unit.reporting.example_run import eval_record
from training.reporting.evaluations import MOST_IN_BETWEEN, metric_groups, newest_of_stages, occasion, suite_tables


def test_metrics_are_grouped_by_benchmark_and_a_gap_stays_a_gap() -> None:
    first = {"bits_per_byte": 2.0, "bfcl_multi_turn/pass_at_1": 0.5, "bfcl_multi_turn/pass_at_1/base": 0.25}
    second = {"bits_per_byte": 1.5, "cissp/acc": 0.75}
    groups = metric_groups([first, second])
    assert [(group.name, group.rows) for group in groups] == [
        ("", [("bits_per_byte", [2.0, 1.5])]),
        ("bfcl_multi_turn", [("pass_at_1", [0.5, None]), ("pass_at_1/base", [0.25, None])]),
        ("cissp", [("acc", [None, 0.75])]),
    ]


def test_a_suite_has_a_column_for_every_end_and_the_last_ones_in_between() -> None:
    between = [replace(eval_record(step, "pretrain", 2.5), in_between=True) for step in range(10, 200, 10)]
    ends = [eval_record(0, "start", 3.0), eval_record(200, "pretrain", 2.0)]
    (table,) = suite_tables([ends[0], *between, ends[1]])
    assert table.occasions == [ends[0], *between[-MOST_IN_BETWEEN:], ends[1]]
    assert table.num_left_out == len(between) - MOST_IN_BETWEEN
    assert [occasion(record) for record in table.occasions[:2]] == ["start", "pretrain, step 140"]
    other = replace(ends[1], suite="coding")
    assert [table.suite for table in suite_tables([*ends, other])] == ["quick", "coding"]


def test_items_are_those_of_the_newest_evaluation_of_each_training_stage() -> None:
    def record(step: int, stage: str, report: str, in_between: bool = False):
        return replace(eval_record(step, stage, 2.0), report=report, in_between=in_between)

    evals = [
        record(4, "pretrain", "eval/pretrain/step-00000004/quick.json", True),
        record(9, "pretrain", "eval/pretrain/quick.json"),
        record(12, "anneal", "eval/anneal/step-00000012/quick.json", True),
        record(15, "later", ""),
    ]
    assert [r.step for r in newest_of_stages(evals)] == [9, 12]

"""What the report says beyond the curves: price, findings, intervals, time lost, memory, samples, profiles."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reporting.example_full_run import BEGIN_SECONDS, TRACE, write_full_example
from tests.unit.reporting.example_run import HOSTILE_TEXT, eval_record, write_example_run
from tests.unit.reporting.page import Page
from training.reporting.goodput import Spent
from training.reporting.metrics import MetricsLog
from training.reporting.records import IncidentRecord
from training.reporting.report.ahead import expected_end
from training.reporting.report.attention import Severity, findings
from training.reporting.report.headline import facts, progress
from training.reporting.report.memory import memory_of_stages
from training.reporting.report.page import write_report
from training.reporting.report.samples import samples_of
from training.reporting.report.scores import interval, score_names
from training.reporting.report.time_lost import cost, time_rows
from training.reporting.report.traces import costliest, is_plain, open_inside, trace_paths
from training.reporting.summary import RunSummary, read_run


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_full_example(tmp_path_factory.mktemp("full") / "demo")


@pytest.fixture(scope="module")
def summary(full: Path) -> RunSummary:
    return read_run(full)


def test_a_run_with_all_records_has_all_charts_and_sections(full: Path) -> None:
    page = Page(write_report(full))
    charts = {
        *("loss", "bits_per_byte", "scores", "tokens_per_second", "tokens_per_second_per_device", "mfu", "step_time"),
        *("bubble", "time", "memory", "grad_norm", "learning_rate", "layers", "experts", "expert_load", "rank_load"),
        *("router_entropy", "dead_experts"),
    }
    assert set(page.figures) == charts == {i.removeprefix("chart-") for i in page.ids if i.startswith("chart-")}
    assert {"time-section", "memory-section", "experts-section", "plan", "profiles"} <= set(page.ids)
    assert page.loads == [f"a href={TRACE}"]
    assert page.text.count(HOSTILE_TEXT) >= 3  # samples, an incident, an operator


def test_the_headline_says_what_where_how_far_and_what_it_cost(summary: RunSummary) -> None:
    said = {fact.name: (fact.value, fact.detail) for fact in facts(summary)}
    assert said["model"] == ("1.85B parameters", "420M active, 8 layers of 512")
    assert said["where"] == ("16 × H100, 2 hosts", "node-1, node-2")
    assert said["steps"] == ("110 of 110", "451k tokens")
    assert said["started, UTC"][1] == "3 attempts, 4 incidents"
    assert progress(summary).startswith("Step 110 of 110, training stage long_context, loss ")
    used = cost(summary.goodput, summary.starts)
    assert used is not None
    assert summary.goodput is not None
    up_seconds = summary.goodput.wall_seconds - summary.goodput.spent[Spent.down]
    assert used.device_hours == pytest.approx(16 * up_seconds / 3600)
    assert used.price == pytest.approx(2.5 * used.device_hours)
    assert said["price so far"] == (f"{used.price:,.2f}", f"{used.device_hours:,.3g} device-hours")


def test_without_a_configured_price_only_device_hours_are_said(summary: RunSummary) -> None:
    without = replace(summary, starts=[replace(start, price_per_hour=None) for start in summary.starts])
    said = {fact.name: fact.detail for fact in facts(without)}
    assert said["device-hours"] == "no price is configured"
    assert "price so far" not in said


def test_the_time_table_adds_up_to_the_wall_time(summary: RunSummary) -> None:
    assert summary.goodput is not None
    rows = time_rows(summary.goodput)
    assert sum(seconds for _, seconds, _ in rows) == pytest.approx(summary.goodput.wall_seconds, rel=1e-4)
    assert sum(share for *_, share in rows) == pytest.approx(1.0, rel=1e-4)
    assert {what for what, *_ in rows} >= {Spent.compute, Spent.undone, Spent.restart, Spent.down}
    assert summary.goodput.attempts[0].begin_seconds == BEGIN_SECONDS


def test_what_stopped_a_run_comes_before_everything_else(tmp_path: Path) -> None:
    run_directory = write_example_run(tmp_path / "demo", blocked=True)
    first, *others = findings(read_run(run_directory))
    assert (first.severity, first.title) == (Severity.bad, "Blocked by the gate after anneal")
    assert first.section in Page(write_report(run_directory)).ids
    assert [finding.title for finding in others] == ["restart"]


def test_incidents_are_one_finding_per_kind_and_urgent_only_while_the_run_goes_on(tmp_path: Path) -> None:
    run_directory = write_example_run(tmp_path / "demo")
    log = MetricsLog(run_directory / "metrics.jsonl")
    for step in (108, 109):
        log.append(IncidentRecord(step=step, stage="long_context", what="hang", message=f"rank {step}", attempt=1))
    log.close()
    assert {finding.severity for finding in findings(read_run(run_directory))} == {Severity.note}
    (run_directory / "stages.json").write_text('{"state": "running"}')
    hang, restart = findings(read_run(run_directory))
    assert (hang.severity, hang.title) == (Severity.bad, "2 × hang")
    assert hang.details[0].endswith("before the last record: rank 109")
    assert (restart.severity, restart.title) == (Severity.note, "restart")


def test_losses_that_are_no_numbers_and_skipped_steps_are_found(summary: RunSummary) -> None:
    running = replace(summary, state="running", incidents=[], incident_times_seconds=[])
    assert [f.title for f in findings(running) if f.severity is not Severity.note] == []
    broken = [replace(step, skipped=True, loss=float("nan")) for step in running.steps[-3:]]
    found = findings(replace(running, steps=[*running.steps[:-3], *broken]))
    assert [f.title for f in found if f.severity is not Severity.note] == [
        "The latest losses or gradients are not finite",
        "3 of the last 20 steps changed nothing (skipped)",
    ]


def test_a_run_that_became_slow_is_found(summary: RunSummary) -> None:
    one_stage = [replace(step, stage="pretrain") for step in summary.steps]
    slow = [replace(step, tokens_per_second=1000.0) for step in one_stage[-20:]]
    running = replace(summary, state="running", incidents=[], incident_times_seconds=[])
    assert not any("Slower" in f.title for f in findings(replace(running, steps=one_stage)))
    found = findings(replace(running, steps=[*one_stage[:-20], *slow]))
    assert any(f.title.startswith("Slower than it was: 1.00k tokens/s, 2.0") for f in found)


@pytest.mark.parametrize(
    ("metrics", "metric", "bounds"),
    [
        ({"acc": 0.5, "acc_low": 0.4, "acc_high": 0.7}, "acc", (0.4, 0.7)),
        ({"b/acc": 0.5, "b/acc_stderr": 0.1}, "b/acc", (0.304, 0.696)),
        ({"choice_accuracy": 0.5, "choice_standard_error": 0.1}, "choice_accuracy", (0.304, 0.696)),
        ({"acc": 0.9, "acc_stderr": 0.1}, "acc", (0.704, 1.0)),
        ({"acc": 0.0, "acc_stderr": 0.1}, "acc", (0.0, 0.196)),
        ({"nats_per_token": 4.0, "nats_per_token_stderr": 1.0}, "nats_per_token", (2.04, 5.96)),
        ({"acc": 0.5, "acc_low": 0.4}, "acc", None),
        ({"acc": 0.5}, "acc", None),
    ],
)
def test_intervals_are_those_that_the_suite_reports(
    metrics: dict[str, float], metric: str, bounds: tuple[float, float] | None
) -> None:
    found = interval(replace(eval_record(1, "pretrain", 2.0), metrics=metrics), metric)
    assert found == (pytest.approx(bounds) if bounds else None)


def test_only_shares_of_which_more_is_better_are_scores() -> None:
    metrics = {
        **{"bits_per_byte": 0.9, "prose/bits_per_byte": 0.8, "b/acc": 0.5, "b/items": 1.0, "b/contaminated": 0.0},
        **{"held_out_nats_per_token": 0.7, "choice_accuracy": 0.4, "choice_standard_error": 0.1, "choice_chance": 0.25},
    }
    record = replace(eval_record(1, "pretrain", 2.0), metrics=metrics)
    assert score_names(record) == ["b/acc", "choice_accuracy"]


def test_memory_stands_beside_its_plan(summary: RunSummary) -> None:
    memory = {stage.stage: stage for stage in memory_of_stages(summary)}
    assert memory["anneal"].planned_bytes == 64e9
    assert (memory["anneal"].device_bytes, memory["anneal"].device_rank) == (61e9, 0)
    assert memory["long_context"].host_bytes == 8.2e9 + 2e6 * 110
    assert memory["pretrain"].held_bytes["weights"] == 3_700_000_000


def test_the_loss_that_is_expected_at_the_end_of_the_present_stage_is_said_and_marked(
    full: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "demo"
    shutil.copytree(full, directory)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    (end,) = [place for place, line in enumerate(lines) if '"kind": "step", ' in line and '"step": 48,' in line]
    (directory / "metrics.jsonl").write_text("\n".join(lines[: end + 1]) + "\n")
    (directory / "stages.json").write_text('{"state": "running"}')
    assert expected_end(read_run(directory)) is None  # too few steps by default
    with (directory / "config.yaml").open("a") as file:
        file.write("reporting: {forecast: {min_steps: 20, sigmas: 3.0}}\n")
    summary = read_run(directory)
    found = expected_end(summary)
    assert found is not None
    assert (found.stage, found.step) == ("pretrain", 60)
    assert found.expected.low < found.expected.loss < found.expected.high
    assert found.expected.loss < summary.steps[-1].loss + 0.2
    page = Page(write_report(directory))
    assert f"{found.expected.loss:.3f} ({found.expected.low:.3f} to {found.expected.high:.3f}) is expected" in page.text
    mark = page.figures["loss"]["data"][-1]
    assert (mark["x"], mark["y"]) == ([60], [found.expected.loss])
    assert expected_end(replace(summary, state="done")) is None


def test_a_sample_belongs_to_the_stage_before_and_the_one_after_it(summary: RunSummary) -> None:
    first, _ = samples_of(summary.evals)
    assert [(sample.title, sample.stages) for sample in first.samples] == [
        ("before training", ["start", "pretrain"]),
        ("after pretrain", ["pretrain", "anneal"]),
        ("after anneal", ["anneal", "long_context"]),
        ("after long_context", ["long_context"]),
    ]
    middle = [replace(record, in_between=record.stage == "anneal") for record in summary.evals]
    assert [sample.title for sample in samples_of(middle)[0].in_between] == ["anneal, step 90"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../other/metrics.jsonl",
        "profiles/../../x",
        "javascript:alert(1)",
        "a\\b",
        "a\nb",
        "./a",
        "a//b",
        "https://example.org/x",
    ],
)
def test_no_other_path_than_one_down_from_the_run_directory_is_offered(summary: RunSummary, path: str) -> None:
    assert not is_plain(path)
    assert trace_paths([replace(summary.profiles[0], trace=path, memory=path)]) == set()


def test_a_hostile_trace_is_text_and_no_link(full: Path, tmp_path: Path) -> None:
    lines = (full / "metrics.jsonl").read_text().replace(TRACE, "javascript:alert(1)")
    (tmp_path / "metrics.jsonl").write_text(lines)
    page = Page(write_report(tmp_path))
    assert page.loads == []
    assert "javascript:alert(1)" in page.text


def test_files_are_opened_without_following_any_link(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "profiles").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (run / "profiles" / "good").write_text("good")
    (run / "profiles" / "link").symlink_to(outside / "secret")
    (run / "folder").symlink_to(outside)
    os.mkfifo(run / "profiles" / "pipe")
    with os.fdopen(open_inside(run, "profiles/good")) as file:
        assert file.read() == "good"
    for path in ("profiles/link", "folder/secret", "profiles/pipe", "profiles", "profiles/none"):
        with pytest.raises(OSError, match=r".+"):
            open_inside(run, path)


def test_operators_that_are_none_are_left_out(summary: RunSummary) -> None:
    operators: list[dict[str, Any]] = [{"name": "a", "calls": 1, "seconds": 1.0}, {"name": 3}, {}]
    operators.append({"name": "b", "calls": 2, "seconds": 3})
    found = costliest(replace(summary.profiles[0], operators=operators))
    assert [(operator.name, operator.share) for operator in found] == [("b", 0.75), ("a", 0.25)]


def test_a_commit_that_is_none_stands_in_no_command(full: Path, tmp_path: Path) -> None:
    assert "git checkout 0123abcd\n" in Page(write_report(full)).text
    run_directory = write_example_run(tmp_path / "demo")
    environment = {"git_commit": "x; rm -rf /", "git_changed_files": 0}
    (run_directory / "environment.json").write_text(json.dumps(environment))
    assert "git checkout" not in Page(write_report(run_directory)).text


def test_a_damaged_config_is_named_and_left_out(tmp_path: Path) -> None:
    run_directory = write_example_run(tmp_path / "demo")
    (run_directory / "config.yaml").write_text("- a list")
    assert "config.yaml is damaged and was left out" in Page(write_report(run_directory)).text

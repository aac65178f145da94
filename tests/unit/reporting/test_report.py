import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.reporting.example_items import LONG_ANSWER, MARKUP, write_example_report
from tests.unit.reporting.example_run import HOSTILE_TEXT, STAGES, eval_record, step_record, write_example_run
from tests.unit.reporting.page import Page
from training.errors import ConfigError, ExitCode
from training.reporting.charts import running_mean, thin
from training.reporting.metrics import MetricsLog
from training.reporting.report.page import write_report
from training.reporting.report.scores import held_out
from training.reporting.report.steps import by_stage
from training.reporting.report.text_summary import text_summary
from training.reporting.summary import read_run

_SECTIONS = [
    "headline",
    "stage-switch",
    "loss-section",
    "incidents",
    "stages",
    "gates",
    "evaluations",
    "samples",
    "speed",
    "gradients",
    "checkpoints",
    "resume",
    "environment",
]


def test_the_page_holds_all_sections_and_charts(tmp_path: Path):
    page = Page(write_report(write_example_run(tmp_path / "demo-7")))
    assert [i for i in page.ids if i in _SECTIONS] == _SECTIONS
    charts = ["loss", "bits_per_byte", "scores", "tokens_per_second", "mfu", "grad_norm", "learning_rate"]
    assert [i.removeprefix("chart-") for i in page.ids if i.startswith("chart-")] == charts
    assert sorted(page.figures) == sorted(charts)
    for expected in ("demo-7", "done", "1.9000", "promote", "47.4 MB", "continued from step 40", "packages.torch"):
        assert expected in page.text
    assert "run.id=demo-7 resume=auto" in page.text


def test_the_page_loads_nothing_and_forbids_the_browser_to(tmp_path: Path):
    page = Page(write_report(write_example_run(tmp_path / "demo")))
    assert page.loads == []
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy


def test_text_of_the_run_cannot_become_markup(tmp_path: Path):
    harmless, hostile = (write_example_run(tmp_path / name) for name in ("harmless", "hostile"))
    metrics_path = hostile / "metrics.jsonl"
    lines = metrics_path.read_text().replace('"anneal"', '"</script><script>alert(1)</script>"')
    metrics_path.write_text(lines.replace("quick", "<img src=http://example.org>"))
    page = Page(write_report(hostile))
    assert page.num_scripts == Page(write_report(harmless)).num_scripts
    assert page.loads == []
    assert HOSTILE_TEXT in page.text


def test_a_block_is_said_with_its_reason_before_anything_else(tmp_path: Path):
    page = Page(write_report(write_example_run(tmp_path / "demo", blocked=True)))
    first_words = page.text[: page.text.index("started")]
    assert "Blocked by the gate after anneal" in first_words
    assert "bits per byte rose by 0.20 over pretrain's 2.11, allowed is 0.00" in first_words


def test_a_run_that_goes_on_after_a_block_is_not_shown_as_blocked(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo", blocked=True)
    (run_directory / "stages.json").write_text('{"state": "running"}')
    assert "Blocked by" not in Page(write_report(run_directory)).text


def test_facts_come_from_the_latest_attempt(tmp_path: Path):
    summary = read_run(write_example_run(tmp_path / "demo"))
    assert [step.step for step in summary.steps] == list(range(1, 111))
    assert [step.attempt for step in summary.steps[39:42]] == [0, 1, 1]
    assert summary.tokens == 110 * 2048
    assert summary.num_attempts == 2
    assert [(stage.name, stage.num_steps) for stage in summary.stages] == STAGES
    assert [stage.bits_per_byte for stage in summary.stages] == [2.11, 1.95, 1.9]
    assert sum(stage.tokens for stage in summary.stages) == summary.tokens


@pytest.mark.parametrize("blocked", [True, False])
def test_the_log_alone_tells_how_the_run_ended(tmp_path: Path, blocked: bool):
    run_directory = write_example_run(tmp_path / "demo", blocked=blocked)
    for name in ("stages.json", "overrides.yaml", "environment.json"):
        (run_directory / name).unlink()
    summary = read_run(run_directory)
    assert summary.state == ("blocked" if blocked else "done")
    assert summary.stages[0].layout.startswith("pipeline 2")
    assert summary.resume_command == "python -m launch.submit run.id=demo resume=auto"
    write_report(run_directory)


def test_a_ledger_with_missing_keys_or_damage_does_not_stop_the_report(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    (run_directory / "stages.json").write_text('{"stages": [{}, {"name": "later"}]}')
    summary = read_run(run_directory)
    assert summary.state == "done"
    assert summary.stages[0].name == "later"
    assert summary.stages[0].status == "pending"
    (run_directory / "stages.json").write_text('{"stages": [')
    assert "stages.json is damaged" in Page(write_report(run_directory)).text


def test_a_run_without_any_record_has_a_report(tmp_path: Path):
    MetricsLog(tmp_path / "metrics.jsonl").close()
    assert "No step was done yet" in Page(write_report(tmp_path)).text


def test_the_command_to_continue_is_safe_for_a_shell_and_names_this_run_once(tmp_path: Path):
    command = read_run(write_example_run(tmp_path / "demo")).resume_command
    words = subprocess.run(["sh", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True, check=True)
    expected = ["python", "-m", "launch.submit", "experiment=demo", "run.name=it's mine", "run.id=demo", "resume=auto"]
    assert words.stdout.splitlines() == expected


def test_a_long_curve_keeps_its_spike_when_it_is_thinned():
    steps, values = np.arange(100_000.0), np.ones(100_000)
    values[54_321], values[77_777] = 9.0, np.nan
    x, y = thin(steps, values)
    assert len(x) == len(y) <= 2000
    assert y[x == 54_321] == 9.0
    assert np.isfinite(y).all()
    assert (np.diff(x) > 0).all()
    for few, same in zip(thin(steps[:100], values[:100]), (steps[:100], values[:100]), strict=True):
        np.testing.assert_array_equal(few, same)


def test_a_running_mean_leaves_out_what_is_no_number():
    np.testing.assert_allclose(running_mean(np.array([1.0, 3.0, np.nan, 5.0, 9.0]), 2), [1.0, 2.0, 3.0, 5.0, 7.0])
    assert np.isnan(running_mean(np.array([np.nan, 1.0]), 3)[0])


def test_torn_lines_are_mentioned(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    with (run_directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    assert "1 unreadable line" in Page(write_report(run_directory)).text


def test_a_failed_rewrite_leaves_the_old_page(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    before = write_report(run_directory).read_bytes()
    shutil.copy(run_directory / "metrics.jsonl", tmp_path / "kept")
    (run_directory / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"there is no metrics\.jsonl"):
        write_report(run_directory)
    assert (run_directory / "report.html").read_bytes() == before


def test_the_command_prints_the_path_and_a_short_summary(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo", blocked=True)
    command = [sys.executable, "-m", "training.reporting"]
    good = subprocess.run([*command, run_directory], capture_output=True, text=True, check=True)
    assert good.stdout.splitlines() == [
        str(run_directory / "report.html"),
        *text_summary(read_run(run_directory)).splitlines(),
    ]
    assert "run demo: BLOCKED\n  gate after anneal BLOCKED: bits per byte rose" in good.stdout
    bad = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert bad.returncode == ExitCode.BAD_CONFIG
    assert "there is no metrics.jsonl in it" in bad.stderr


def test_the_charts_hold_the_numbers_of_the_log(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    MetricsLog(run_directory / "metrics.jsonl").append(step_record(110, stage="long_context", attempt=2, loss=7.654321))
    curves = Page(write_report(run_directory)).figures["loss"]["data"]
    assert [curve["name"] for curve in curves] == ["pretrain", "anneal", "long_context", "incidents"]
    assert curves[2]["y"][-1] == 7.654321
    assert sum(len(curve["x"]) for curve in curves[:3]) == 110


def test_a_run_that_is_judged_by_conversations_has_their_chart_and_no_bits_per_byte(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    records = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "eval":
            record |= {"bits_per_byte": None, "metrics": {"assistant_nats_per_token": 0.8125}}
    (run_directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = Page(write_report(run_directory))
    assert {"chart-loss", "chart-assistant_nats_per_token"} <= set(page.ids)
    assert "chart-bits_per_byte" not in page.ids
    assert "0.8125" in page.text


def _with_evaluations(run_directory: Path) -> Path:
    """Return an example run in whose first training stage two more evaluations were made, after its others."""
    write_example_run(run_directory)
    log = MetricsLog(run_directory / "metrics.jsonl")
    record = replace(eval_record(60, "pretrain", 2.11, attempt=1), report="eval/pretrain/quick.json")
    metrics = record.metrics | {"cissp/acc": 0.625}
    log.append(replace(record, metrics=metrics))
    for step, bits in ((20, 2.7), (40, 2.345)):
        report = f"eval/pretrain/step-{step:08d}/quick.json"
        log.append(replace(record, step=step, bits_per_byte=bits, report=report, in_between=True))
    log.close()
    return run_directory


def test_an_evaluation_in_the_midst_of_a_training_stage_is_a_point_and_a_column_of_its_own(tmp_path: Path):
    run_directory = _with_evaluations(tmp_path / "demo")
    summary = read_run(run_directory)
    assert [record.step for record in summary.evals] == [0, 20, 40, 60, 90, 110]
    assert summary.stages[0].bits_per_byte == 2.11
    (curve,) = held_out(summary.evals, by_stage(summary.steps), "bits_per_byte").to_dict()["data"]
    assert list(zip(curve["x"], curve["y"], strict=True))[:4] == [(0, 3.02), (20, 2.7), (40, 2.345), (60, 2.11)]
    assert list(curve["hovertext"])[:4] == ["start", "pretrain, step 20", "pretrain, step 40", "pretrain"]
    page = Page(write_report(run_directory))
    evaluations = page.text[page.text.index("Suite quick") : page.text.index("Samples, before")].split()
    assert " ".join(evaluations).startswith(
        "Suite quick metric start pretrain, step 20 pretrain, step 40 pretrain anneal long_context "
    )
    assert " ".join(evaluations[-300:]).count("cissp acc – – – 0.625 – –") == 1


def test_items_of_the_newest_evaluation_unfold_and_their_answers_cannot_become_markup(tmp_path: Path):
    run_directory = _with_evaluations(tmp_path / "demo")
    write_example_report(run_directory / "eval" / "pretrain" / "quick.json")
    page = Page(write_report(run_directory))
    assert "Items of suite quick, pretrain" in page.text
    assert page.text.count(MARKUP) == 3  # a sample, an answer and its target
    assert page.loads == []
    assert page.num_scripts == Page(write_report(write_example_run(tmp_path / "harmless"))).num_scripts
    assert "regex_match: 203 items" in page.text
    left_out = "These are the first 100 items; 103 more are left out here and stand in eval/pretrain/quick.json."
    assert left_out in page.text
    assert "half a character: ?, and" in page.text
    assert LONG_ANSWER[:1001] not in page.text
    assert "2: not solved: the state differs (2 turns, 3 calls)" in page.text


def test_items_that_cannot_be_read_are_a_sentence_in_the_page(tmp_path: Path):
    run_directory = _with_evaluations(tmp_path / "demo")
    assert "because of eval/pretrain/quick.json: it is not there." in Page(write_report(run_directory)).text
    write_example_report(run_directory / "eval" / "pretrain" / "quick.json", [])
    sentence = "because of eval/pretrain/quick.json: it is no report of an evaluation."
    assert sentence in Page(write_report(run_directory)).text


def test_half_a_character_in_a_sample_does_not_stop_the_page(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    log = MetricsLog(run_directory / "metrics.jsonl")
    log.append(replace(eval_record(60, "pretrain", 2.0), samples=[{"prompt": "So", "text": "a \ud83d"}]))
    log.close()
    assert "a ?" in Page(write_report(run_directory)).text


def test_a_gate_is_shown_with_the_numbers_that_it_went_by(tmp_path: Path):
    run_directory = write_example_run(tmp_path / "demo")
    known = {"value": 2.11, "low": 2.03, "high": 2.19, "num_items": 24, "error_rate": 0.05}
    known |= {"contaminated_items": 3, "mean_overlap": 0.1, "value_without_contaminated": 2.12}
    met = {"condition": "quality", "verdict": "met", "limit": 2.5, **known}
    unknown = {"condition": "no_worse", "verdict": "missed", "limit": None, "error_rate": 0.05}
    entries = [{"name": "pretrain", "gate": {"decision": "block", "numbers": [met, unknown]}}]
    (run_directory / "stages.json").write_text(json.dumps({"state": "done", "stages": entries}))
    text = " ".join(Page(write_report(run_directory)).text.split())
    assert "pretrain quality 2.11 2.03 2.19 5% 24 3 2.12 2.5 met" in text
    assert "pretrain no_worse – – – 5% – – – – missed" in text
    entries[0]["gate"] = {"numbers": [{"condition": 7}]}
    (run_directory / "stages.json").write_text(json.dumps({"state": "done", "stages": entries}))
    text = Page(write_report(run_directory)).text
    assert "the numbers of the gate after pretrain are damaged and were left out: condition is 7" in text

"""`python -m launch.plan` as a user calls it: without torch, in words, numbers and a page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.leave_plan import leave_plan
from launch.plan import main
from launch.plan_text import table
from tests.unit.reporting.page import Page
from training.config.load import compose
from training.reporting.planned import read_plan

REPOSITORY = Path(__file__).parents[3]


def test_a_plan_needs_no_torch_and_no_data(tmp_path: Path) -> None:
    code = (
        "import sys; from launch.plan import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'deepspeed'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    words = ["experiment=mai1_500b", "cluster=azure_nd_h100_v5", "cluster.num_nodes=1875", "--search"]
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    for expected in ("500.0 billion parameters", "MFU", "finish", "for a million tokens", "planned only", "Refused:"):
        assert expected in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_has_every_number_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=gpt4o_1800b", "--json", "--search", "--top", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    stage = plan["stages"]["pretrain"]
    assert len(stage["memory"]) == 64
    step, passes = stage["step"], stage["step"]["passes"]
    parts = sum(passes.values()) + sum(step[f"{name}_seconds"] for name in ("bubble", "data", "optimizer", "other"))
    assert parts == pytest.approx(step["seconds"], rel=1e-6)
    assert sum(plan["goodput"]["days_spent"].values()) == pytest.approx(plan["goodput"]["days"]["mean"])
    assert plan["goodput"]["days_at"] == sorted(plan["goodput"]["days_at"])
    assert len(plan["search"]["ranked"]) == 3
    tokens_per_day = 86_400 * stage["tokens_per_second"]
    assert stage["tokens"] / tokens_per_day == pytest.approx(stage["undisturbed_days"])


def test_the_page_asks_the_network_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.html"
    assert main(["experiment=llama3_405b", "--search", "--html", str(path)]) == 0
    page = Page(path)
    assert page.loads == []
    assert page.policy.startswith("default-src 'none'")
    charts = [i.removeprefix("chart-") for i in page.ids if i.startswith("chart-")]
    assert charts == ["memory-0", "time-0", "schedule-0", "finish", "spent", "search"]
    assert "405.9 billion parameters" in page.text
    assert str(path) in capsys.readouterr().out


def test_steps_of_a_batch_ramp_are_planned_with_their_own_time(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = ["experiment=llama3_405b", "--json"]
    assert main(experiment) == 0
    plain = json.loads(capsys.readouterr().out)["stages"]["pretrain"]
    full = plain["num_steps"] * plain["step"]["seconds"]
    assert plain["mean_step_seconds"] == pytest.approx(plain["step"]["seconds"])
    half = plain["batch"]["accumulation"] * plain["batch"]["micro_batch"] * plain["split"]["replicas"] // 2
    tokens = 1000 * half * plain["batch"]["sequence_length"]
    ramp = f"stages.pretrain.batch_ramp=[{{until_tokens: {tokens}, global_batch_sequences: {half}}}]"
    assert main([*experiment, ramp]) == 0
    stage = json.loads(capsys.readouterr().out)["stages"]["pretrain"]
    assert stage["batch_ramp"] == [{"num_steps": 1000, "sequences": half}]
    assert stage["num_steps"] == plain["num_steps"] + 500
    assert stage["tokens"] == plain["tokens"]
    assert stage["step"] == plain["step"]
    mean = stage["mean_step_seconds"]
    assert full < stage["num_steps"] * mean < full + 1000 * stage["step"]["seconds"]
    assert stage["undisturbed_days"] == pytest.approx(stage["num_steps"] * mean / 86_400)


def test_a_plan_says_that_muon_is_planned_as_adamw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=demo", "optimizer=muon"]) == 0
    assert "Planned as if AdamW updated everything" in capsys.readouterr().out


def test_what_cannot_be_planned_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=mai1_500b", "cluster.network=null"]) == 2
    assert "cluster=azure_nd_h100_v5" in capsys.readouterr().err
    assert main(["--calibrate", "calibration.json"]) == 2
    assert "name run directories" in capsys.readouterr().err
    assert main(["experiment=mai1_500b", "parallel.expert=7"]) == 2
    assert "parallel.expert=8 works" in capsys.readouterr().err


def test_a_plan_that_does_not_fit_says_so_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=mai1_500b", "parallel.expert=1"]) == 0
    assert "does not fit: pipeline stage" in (text := capsys.readouterr().out)
    assert "too much; the most is" in text


def test_the_run_directory_gets_what_the_report_compares_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_plan(tmp_path, compose(["experiment=demo"]))
    notes: list[str] = []
    planned = read_plan(tmp_path, notes)
    assert not notes
    assert planned["pretrain"].layout == "pipeline 1 × data 2, ZeRO-3, 2 ranks"
    assert planned["anneal"].layout == "pipeline 2 × data 1, ZeRO-3, 2 ranks"
    assert planned["anneal"].step_seconds > 0
    (tmp_path / "other").mkdir()
    unknown = compose(["experiment=demo", "cluster.accelerator.device=cuda"])
    leave_plan(tmp_path / "other", unknown)
    assert "no plan to compare with: cluster.accelerator." in capsys.readouterr().err
    assert list((tmp_path / "other").iterdir()) == []


def test_tables_are_aligned() -> None:
    assert table(["name", "number"], [["a", "1"], ["long", "100"]]) == [
        "  name  number",
        "  a          1",
        "  long     100",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nodes", "0", "--search"], "invalid numbers of nodes, such as 512,1024: value: '0'"),
        (["--nodes", "a", "--search"], "invalid numbers of nodes"),
        (["--top", "0", "--search"], "invalid number, at least 1"),
        (["--nodes", "4"], "give --search with them"),
        (["--ours"], "give --search with them"),
    ],
)
def test_odd_options_are_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["experiment=mai1_500b", *words])
    assert raised.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["precision=fp32"], "that is its peak for bf16"),
        (["cluster.reliability.repair_seconds=1e12"], "nodes are in repair"),
        (["parallel.tensor=2", "parallel.sequence=4", "model.experts.expert_ffn_size=6911"], "cannot be dealt evenly"),
        (["parallel.tensor=16", "parallel.sequence=1", "parallel.expert=1"], "model.num_kv_heads=8"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=mai1_500b", *overrides]) == 2
    assert told in capsys.readouterr().err


def test_a_search_among_our_own_leaves_out_what_no_engine_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=mai1_500b", "--search", "--ours"]) == 0
    said = capsys.readouterr().out
    assert "expert 8" in said
    assert "planned only" not in said

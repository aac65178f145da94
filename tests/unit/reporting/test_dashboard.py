"""The dashboard in wandb: its golden file, that what it draws is logged, and that a server gets it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.golden.rewrite import GOLDEN, dashboard_text
from tests.unit.reporting.example_run import eval_record, records, step_record
from tests.unit.reporting.test_wandb_rows import EXPERTS, LAYERS, MEMORY, START, incident
from tests.wandb_server import WandbServer
from training.reporting.dashboard import SECTIONS, missing
from training.reporting.records import Record, TimeRecord
from training.reporting.wandb_rows import WandbRows

EVERYTHING = replace(
    step_record(1000),
    tokens_per_second_per_device=1.0,
    clipped_grad_norm=1.0,
    hfu=0.4,
    data_seconds=0.1,
    waited_seconds=0.1,
    other_seconds=0.1,
    bubble=0.1,
    later_loss=1.0,
    skipped=True,
    preference={"accuracy": 0.5},
    experts=dict.fromkeys(
        ("worst_load", "worst_rank_load", "dead", "entropy", "entropy_of_even", "balance_loss", "z_loss"), 1.0
    ),
)


def test_what_a_server_would_get_is_the_golden_file() -> None:
    assert (GOLDEN / "dashboard.json").read_text() == dashboard_text()


def test_every_metric_that_it_draws_is_logged() -> None:
    given: list[Record] = [
        START,
        *records(blocked=True),
        EVERYTHING,
        LAYERS,
        EXPERTS,
        replace(MEMORY, device_bytes=1.0),
        TimeRecord(step=1, stage="pretrain", attempt=0, spent={"save": 1.0}),
        incident("hang"),
        eval_record(60, "pretrain", 2.0),
    ]
    rows = WandbRows()
    names = {name for record in given for name in rows.row(record)}
    assert missing(sorted(names)) == []
    assert {chart.over for charts in SECTIONS.values() for chart in charts} == {"step", "tokens"} <= names
    assert missing(sorted(names - {"train/loss"})) == ["train/loss", "train/loss"]


def test_one_command_applies_it_and_another_replaces_it(tmp_path: Path) -> None:
    with WandbServer() as server:
        command = [sys.executable, "-m", "training.reporting.dashboard", "--entity", "loopback", "--project", "p"]
        environment = os.environ | server.environment() | {"WANDB_CACHE_DIR": str(tmp_path)}

        def apply(*more: str) -> str:
            done = subprocess.run(
                [*command, *more], env=environment, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        address = apply()
        (made,) = server.views.values()
        assert (made["entityName"], made["projectName"], made["displayName"]) == ("loopback", "p", "Autarky")
        sections = json.loads(made["spec"])["section"]["panelBankConfig"]["sections"]
        assert [section["name"] for section in sections] == list(SECTIONS)
        apply("--replace", address)
        assert list(server.views.values()) == [{**made, "spec": server.only_view()["spec"]}]
        assert server.unknown == []

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.run_directory import LEDGER_NAME
from training.errors import ConfigError, CorruptCheckpoint, StorageError
from training.stages.ledger import GateOutcome, Ledger, RunState, StageEntry, StageStatus, commit
from training.stages.transitions import (
    begun,
    current_stage,
    done,
    evaluated,
    failed,
    gated,
    next_look,
    promoted_without_gate,
    started,
    stopped,
    trained,
    wants_more_items,
    with_start_evaluation,
)

NAMES = ["pretrain", "anneal", "long_context"]


def random_walk(draw_index, num_moves: int) -> Ledger:
    """Return a ledger that legal moves lead to; draw_index(n) chooses one of n."""
    ledger = started(Ledger(stages=tuple(StageEntry(name=name) for name in NAMES)))
    for _ in range(num_moves):
        entry = current_stage(ledger)
        if ledger.state is RunState.done:
            break
        if ledger.state is not RunState.running:
            ledger = started(ledger)
        elif entry is None:
            ledger = done(ledger)
        else:
            ledger = _move(ledger, entry, draw_index)
    return ledger


def outcome(decision: str, entry: StageEntry) -> GateOutcome:
    assert entry.evaluation is not None
    numbers = {"condition": "quality", "verdict": "met", "value": 2.1, "low": None, "num_items": 24}
    return GateOutcome(decision=decision, reasons=("2.1: met",), numbers=(numbers,), look=entry.evaluation.look)


def more_items(ledger: Ledger, name: str, metrics: dict[str, float]) -> Ledger:
    ledger = gated(ledger, name, outcome("more_items", ledger.entry(name)))
    assert wants_more_items(ledger, name)
    ledger = evaluated(ledger, name, f"eval/{name}/quick-look-{next_look(ledger, name)}.json", metrics)
    assert not wants_more_items(ledger, name)
    return ledger


def _move(ledger: Ledger, entry: StageEntry, draw_index) -> Ledger:
    name, metrics = entry.name, {"bits_per_byte": 2.0 + draw_index(5) / 3}
    moves = {
        StageStatus.pending: [lambda: begun(ledger, name)],
        StageStatus.training: [lambda: trained(ledger, name, "checkpoints/step-00000100"), lambda: failed(ledger)],
        StageStatus.trained: [
            lambda: stopped(ledger),
            lambda: evaluated(ledger, name, f"eval/{name}/quick.json", metrics),
            lambda: promoted_without_gate(ledger, name),
        ],
        StageStatus.evaluated: [
            lambda: gated(ledger, name, outcome("promote", entry)),
            lambda: gated(ledger, name, outcome("block", entry)),
            lambda: gated(ledger, name, outcome("ask", entry)),
            lambda: more_items(ledger, name, metrics),
        ],
        StageStatus.blocked: [lambda: gated(ledger, name, outcome("promote", entry))],
    }[entry.status]
    if entry.status is StageStatus.pending and name == NAMES[0] and ledger.start_evaluation is None:
        moves.append(lambda: with_start_evaluation(ledger, "eval/start/quick.json", metrics))
    return moves[draw_index(len(moves))]()


def test_a_run_directory_without_a_ledger_gives_a_fresh_one_and_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, NAMES)
    assert [entry.status for entry in ledger.stages] == [StageStatus.pending] * 3
    assert (ledger.attempt, ledger.state) == (-1, RunState.running)
    assert list(tmp_path.iterdir()) == []


@given(st.data(), st.integers(0, 25))
def test_every_reachable_ledger_comes_back_from_its_text(data: st.DataObject, num_moves: int) -> None:
    ledger = random_walk(lambda n: data.draw(st.integers(0, n - 1)), num_moves)
    assert Ledger.from_json(ledger.to_json(), Path(LEDGER_NAME)) == ledger


def test_a_committed_ledger_is_read_back_and_leaves_no_other_file(tmp_path: Path) -> None:
    ledger = random_walk(random.Random(3).randrange, 9)
    commit(ledger, tmp_path)
    commit(ledger, tmp_path)
    assert Ledger.open(tmp_path, NAMES) == ledger
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER_NAME]


def test_the_file_has_the_documented_shape(tmp_path: Path) -> None:
    commit(begun(started(Ledger.open(tmp_path, ["pretrain"])), "pretrain"), tmp_path)
    entry = {"name": "pretrain", "status": "training", "checkpoint": None, "evaluation": None, "gate": None}
    assert json.loads((tmp_path / LEDGER_NAME).read_text()) == {
        "version": 1,
        "state": "running",
        "attempt": 0,
        "start_evaluation": None,
        "stages": [entry],
        "rolled_back": [],
    }


def test_other_training_stages_than_the_file_has_are_refused_with_both_lists(tmp_path: Path) -> None:
    commit(started(Ledger.open(tmp_path, NAMES)), tmp_path)
    with pytest.raises(ConfigError, match=r"pretrain.*anneal.*long_context") as refusal:
        Ledger.open(tmp_path, ["pretrain", "sft"])
    assert "sft" in str(refusal.value)
    assert "run.id" in str(refusal.value)


def test_training_stages_added_at_the_end_are_pending_and_a_done_run_has_them_left_to_do(tmp_path: Path) -> None:
    ledger = begun(started(Ledger.open(tmp_path, ["pretrain"])), "pretrain")
    ledger = done(promoted_without_gate(trained(ledger, "pretrain", "checkpoints/step-00000004"), "pretrain"))
    commit(ledger, tmp_path)
    longer = Ledger.open(tmp_path, ["pretrain", "anneal"])
    assert longer.state is RunState.running
    assert longer.stages == (*ledger.stages, StageEntry(name="anneal"))
    assert current_stage(started(longer)) == StageEntry(name="anneal")
    assert Ledger.open(tmp_path, ["pretrain"]) == ledger
    for other in (["anneal", "pretrain"], ["anneal"], []):
        with pytest.raises(ConfigError, match="belongs to a run with"):
            Ledger.open(tmp_path, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: text.replace('"training"', '"promoted"'),
        lambda text: text.replace('"status"', '"statsu"'),
        lambda text: "[]",
    ],
    ids=["torn", "other version", "promoted without a checkpoint", "missing key", "not an object"],
)
def test_a_file_that_is_no_ledger_is_refused_with_a_remedy(tmp_path: Path, change) -> None:
    text = begun(started(Ledger.open(tmp_path, NAMES)), "pretrain").to_json()
    (tmp_path / LEDGER_NAME).write_text(change(text))
    with pytest.raises(CorruptCheckpoint, match="restore it from a backup"):
        Ledger.open(tmp_path, NAMES)


def test_a_ledger_that_cannot_be_written_is_a_storage_error_and_the_old_one_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        commit(started(Ledger.open(tmp_path, NAMES)), tmp_path / "file")


COMMIT_IN_A_LOOP = """
import sys
from dataclasses import replace
from pathlib import Path
from training.stages.ledger import Ledger, commit
from training.stages.transitions import started

run_directory = Path(sys.argv[1])
ledger = Ledger.open(run_directory, ["a" * 2000, "b"])
while True:
    ledger = started(ledger)
    commit(ledger, run_directory)
    sys.stdout.write(f"{ledger.attempt}\\n")
    sys.stdout.flush()
"""


def test_a_kill_at_any_moment_leaves_a_whole_ledger_that_is_the_last_committed_or_the_next(tmp_path: Path) -> None:
    generator = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", COMMIT_IN_A_LOOP, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.02))
        process.kill()
        reported = process.stdout.read().decode().split("\n")[:-1]
        process.stdout.close()
        process.wait()
        ledger = Ledger.open(tmp_path, ["a" * 2000, "b"])
        if reported:
            assert ledger.attempt - int(reported[-1]) in (0, 1)
        expected = Ledger(stages=(StageEntry(name="a" * 2000), StageEntry(name="b")), attempt=ledger.attempt)
        assert ledger == expected

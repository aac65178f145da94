"""A run that learns from conversations, then from pairs: its references are kept, and made again if they are lost."""

import json
import shutil
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.integration.reading import contents, last_checkpoint, numbers_by_step, records
from tests.integration.running import SMOKE, kill, only_run, run_directories, submit, submit_to_end
from training.config.data_schema import SourceConfig, SourceKind
from training.data.corpus import read_documents

STEPS = 8


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of two training stages on verses: which one comes next, and that its words are not turned round."""
    folder = tmp_path_factory.mktemp("verses")
    chapters = [document.text for document in islice(read_documents("kjv", SourceConfig(kind=SourceKind.kjv)), 12)]
    verses = [line for chapter in chapters for line in chapter.splitlines()]
    talks, pairs = [], []
    for place, (verse, following) in enumerate(pairwise(verses)):
        ask = [{"role": "user", "content": verse}]
        answer = [{"role": "assistant", "content": following}]
        other = [{"role": "assistant", "content": " ".join(reversed(following.split()))}]
        talks.append({"id": f"verse {place}", "messages": [*ask, *answer]})
        pairs.append({"id": f"verse {place}", "prompt": ask, "chosen": answer, "rejected": other})
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = f"tokens: {STEPS * 8 * 256}, sequence_length: 256, global_batch_sequences: 8, micro_batch_sequences: 2"
    return [
        *SMOKE,
        "~stages.anneal",
        "~stages.pretrain",
        "model.max_sequence_length=256",
        f"+data.sources.talks={{kind: json, form: conversations, id_field: id, path: {folder}/talks.jsonl}}",
        f"+data.sources.pairs={{kind: json, form: preferences, id_field: id, path: {folder}/pairs.jsonl}}",
        f"+stages.sft={{kind: sft, mixture: {{talks: 1}}, {stage}, parallel: {{zero_stage: 1}}}}",
        f"+stages.dpo={{kind: preference, mixture: {{pairs: 1}}, {stage}, parallel: {{zero_stage: 3}}}}",
        f"data.prepared_root={folder}/prepared",
    ]


@pytest.fixture(scope="module")
def undisturbed(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    finished = submit_to_end([*overrides, f"run.root={root}"], folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return only_run(root)


def test_a_model_begins_as_its_own_reference_and_learns_to_prefer(undisturbed: Path) -> None:
    steps = [step for step in records(undisturbed, "step") if step["stage"] == "dpo"]
    assert len(steps) == STEPS
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert abs(steps[0]["preference"]["margin"]) < 1e-3
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.01
    assert steps[-1]["preference"]["margin"] > 0.01
    sft = [step["loss"] for step in records(undisturbed, "step") if step["stage"] == "sft"]
    assert sft[-1] < sft[0] - 0.2


@pytest.mark.parametrize("is_lost", [False, True], ids=["kept references", "lost references"])
def test_a_killed_run_goes_on_with_the_same_reference(
    overrides: list[str], undisturbed: Path, tmp_path: Path, *, is_lost: bool
) -> None:
    root = tmp_path / "runs"
    words = [*overrides, f"run.root={root}"]
    with submit(words, folder=tmp_path) as job:
        job.wait_until(lambda: any(len(records(run, "step")) >= STEPS + 5 for run in run_directories(root)))
        kill(job.ranks()[1])
        assert job.survivors(within_seconds=30) == []
    run = only_run(root)
    assert STEPS < int(last_checkpoint(run).name.removeprefix("step-")) < 2 * STEPS, "it is to go on within dpo"
    if is_lost:
        shutil.rmtree(run / "references")
    finished = submit_to_end([*words, f"run.id={run.name}", "resume=auto"], folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    assert numbers_by_step(records(run, "step")) == numbers_by_step(records(undisturbed, "step"))
    mine, theirs = contents(last_checkpoint(run)), contents(last_checkpoint(undisturbed))
    assert mine["files"] == theirs["files"]

"""Every rank of a start learns the same run directory, config and way to resume, or the same refusal."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import run_to_end
from training.config.load import compose
from training.config.run_directory import resolve

TWO = ["experiment=smoke"]
COMMANDS: dict[str, list[str]] = {
    "short form": ["{started}", "resume=auto"],
    "section": ["{started}", "resume.mode=must", "resume.allow=[optimizer.lr,stages.*.tokens]"],
    "never beside checkpoints": ["{started}"],
    "another key": ["{started}", "optimizer.lr=1", "resume=auto"],
    "mistyped": ["{started}", "resume=atuo"],
    "done": ["{done}", "resume=auto"],
    "wider run": ["{wider}", "resume=auto"],
    "wider run by overrides": [*TWO, "{root}", "run.id=wider", "resume=auto"],
    "guarded": [*TWO, "{root}", "run.id=started", "resume=auto", "optimizer.lr=1e-5"],
    "allowed": [*TWO, "{root}", "run.id=started", "resume=auto", "optimizer.lr=1e-5", "resume.allow=[optimizer.lr]"],
    "other layout": [*TWO, "{root}", "run.id=wider", "resume=auto", "stages.pretrain.parallel.zero_stage=1"],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("find_run")
    root = f"run.root={folder}/runs"
    places = {"root": root}
    for name, processes in (("started", 2), ("done", 2), ("wider", 4)):
        overrides = [*TWO, root, f"run.id={name}", f"cluster.processes_per_node={processes}"]
        directory = resolve(compose(overrides), overrides)
        (directory / "checkpoints" / "step-00000004").mkdir(parents=True)
        places[name] = str(directory)
    complete = [{"name": name, "checkpoint": "checkpoints/step-00000004"} for name in ("pretrain", "anneal")]
    (Path(places["done"]) / "stages.json").write_text(json.dumps({"state": "done", "stages": complete}))
    commands = [[word.format(**places) if word[0] == "{" else word for word in words] for words in COMMANDS.values()]
    (folder / "commands.json").write_text(json.dumps(commands))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = run_to_end([*torchrun, "-m", "tests.distributed.find_run_worker", str(folder)], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    return dict(zip(COMMANDS, first, strict=True))


@pytest.mark.parametrize(
    ("command", "directory", "mode", "allow"),
    [
        ("short form", "started", "auto", []),
        ("section", "started", "must", ["optimizer.lr", "stages.*.tokens"]),
        ("wider run by overrides", "wider", "auto", []),
        ("allowed", "started", "auto", ["optimizer.lr"]),
    ],
)
def test_all_ranks_learn_how_to_resume(
    answers: dict[str, Any], command: str, directory: str, mode: str, allow: list[str]
) -> None:
    answer = answers[command]
    assert (Path(answer["directory"]).name, answer["mode"], answer["allow"]) == (directory, mode, allow)


def test_a_changed_layout_and_an_allowed_change_reach_all_ranks(answers: dict[str, Any]) -> None:
    assert answers["other layout"]["zero_stage"] == 1
    assert answers["allowed"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("command", "pieces"),
    [
        ("never beside checkpoints", ["start over at step 0", "add resume=auto"]),
        ("another key", ["optimizer.lr=1: a run directory's config is frozen", "run.id=started and resume=auto"]),
        ("mistyped", ["did you mean resume.mode=auto?"]),
        ("done", ["the run is done", "resume.allow=[stages.NAME]"]),
        ("wider run", ["started 2 processes, not 4", "run.id=wider resume=auto an earlier run goes on"]),
        ("guarded", ["optimizer.lr=1e-05: the earlier start had 0.002", "resume.allow=[optimizer.lr]"]),
    ],
)
def test_all_ranks_are_refused_in_the_same_words(answers: dict[str, Any], command: str, pieces: list[str]) -> None:
    assert all(piece in answers[command]["error"] for piece in pieces), answers[command]

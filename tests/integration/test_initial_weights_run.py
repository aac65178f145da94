"""A run's weights go out and start another run, which begins where the first one ended."""

import json
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import last_checkpoint, ledger, records
from tests.integration.running import only_run, run_to_end, submit_to_end
from tests.integration.test_whole_run import approximately

SHORT = [
    "stages.pretrain.tokens=512",
    "stages.anneal.tokens=512",
    "stages.pretrain.gate=null",
    "stages.anneal.gate=null",
]


@pytest.mark.parametrize("kind", ["hf", "checkpoint"])
def test_a_run_begins_with_the_weights_that_another_one_ended_with(
    kind: str, reference: Reference, tmp_path: Path
) -> None:
    source = last_checkpoint(reference.directory)
    if kind == "hf":
        export = ["-m", "training.checkpoint", "export", str(source), str(tmp_path / "exported"), "--no-check-logits"]
        assert run_to_end([sys.executable, *export], folder=tmp_path).exit_code == 0
        source = tmp_path / "exported"
    root = tmp_path / "runs"
    command = [*reference.overrides, *SHORT, f"run.root={root}", f"init_from={kind}:{source}"]
    finished = submit_to_end(command, folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    assert ledger(run)["state"] == "done"
    at_start = json.loads((run / "eval/start/quick.json").read_text())
    at_end = json.loads((reference.directory / "eval/anneal/quick.json").read_text())
    assert at_start["tasks"] == approximately(at_end["tasks"])
    first, last = records(run, "step")[0], records(reference.directory, "step")[-1]
    assert first["loss"] == pytest.approx(last["loss"], abs=0.3)
    assert first["loss"] < records(reference.directory, "step")[0]["loss"] - 0.3


def test_weights_of_another_model_are_refused_before_a_step(reference: Reference, tmp_path: Path) -> None:
    wrong = [*reference.overrides, f"run.root={tmp_path}", "model.ffn_size=96"]
    source = last_checkpoint(reference.directory)
    finished = submit_to_end([*wrong, f"init_from=checkpoint:{source}"], folder=tmp_path / "output")
    assert finished.exit_code != 0
    assert "mlp." in finished.stderr
    assert "shape" in finished.stderr
    assert records(only_run(tmp_path), "step") == []

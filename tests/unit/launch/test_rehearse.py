"""`python -m launch.rehearse` as a user calls it."""

import json

import pytest

from launch.rehearse import main
from training.errors import ExitCode
from training.rehearsal.planted import MISTAKES

PIPELINE = ["experiment=demo", "cluster.processes_per_node=4", "cluster.accelerator.memory_bytes=8e9"]


def test_a_sound_run_is_described_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PIPELINE) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "demo, pretrain: 4 ranks as pipeline 1 x data 4, ZeRO-3" in said
    assert "demo, anneal: 4 ranks as pipeline 2 x data 2, ZeRO-3" in said
    assert said.count("no mistake: all programs end") == 2


def test_a_planted_mistake_is_named_and_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PIPELINE, "--plant", "collective_missing"]) == ExitCode.FAILED
    said = capsys.readouterr().out
    assert "1 FINDING" in said
    assert "rank 2 (pipeline stage 0, replica 2), operation" in said


def test_all_mistakes_are_tried_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PIPELINE, "--plant=all"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "MISSED" not in said
    for kind in MISTAKES:
        assert kind in said


def test_json_has_layout_findings_and_failure(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [f"stages.{stage}.global_batch_sequences=32" for stage in ("pretrain", "anneal")]
    words = [*PIPELINE, *batches, "cluster.num_nodes=2", "--json", "--fail", "node=1"]
    assert main(words) == ExitCode.DONE
    pretrain, anneal = json.loads(capsys.readouterr().out)
    assert pretrain["world_size"] == 8
    assert anneal["axes"] == {"pipeline": 2, "data": 4, "sequence": 1, "tensor": 1, "expert": 1}
    assert pretrain["findings"] == []
    assert anneal["failure"]["ranks"] == [4, 5, 6, 7]
    assert anneal["failure"]["dead_of_pipeline_stage"] == {"1": 4}
    assert anneal["failure"]["starts"]["without spares"]["num_nodes"] == 1


def test_nodes_that_fail_may_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=mai1_500b", "--fail=random=2,seed=7"]) == ExitCode.DONE
    first = capsys.readouterr().out
    assert "dead: 2 nodes" in first
    assert "the last checkpoint is needed" in first
    assert "without spares: 1,500 nodes, 12,000 ranks as pipeline 15 x data 100" in first


def test_memory_that_is_too_small_is_a_bad_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PIPELINE[:2], "cluster.accelerator.memory_bytes=1e6"]) == ExitCode.BAD_CONFIG
    assert "memory: ranks 0-3 of pipeline stage 0" in capsys.readouterr().out


def test_what_no_engine_runs_is_marked_as_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=llama3_405b", "parallel.tensor=8"]
    assert main(words) == ExitCode.DONE
    assert "PLANNED: no engine runs tensor 8 yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--plant", "typo"], "there is no such kind"),
        (["--plant"], "it needs a value"),
        (["--plant", "expert_owned_by_nobody"], "leaves no room for it"),
        (["--fail", "nodes=3"], "node=3,17 or random=2,seed=7"),
        (["--fail", "node=three"], "node=3,17 or random=2,seed=7"),
        (["--fail", "node=4"], "a number from 0 to 0"),
        (["--typo"], "there is no such option"),
        (["parallel.pipelin=2"], "parallel.pipelin"),
        (["optimizer=muon"], "is not rehearsed"),
    ],
)
def test_an_impossible_command_line_is_refused(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PIPELINE, *words]) == ExitCode.BAD_CONFIG
    assert part in capsys.readouterr().err


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == ExitCode.DONE
    assert "--plant KIND|all" in capsys.readouterr().out

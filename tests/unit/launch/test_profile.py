"""A profile is asked for steps that lie ahead, of ranks that exist; the ranks read back what was written."""

import json
from pathlib import Path

import pytest

from launch.profile import main, request_for
from training.config.load import compose
from training.config.profile_request import read_profile_request
from training.config.reporting_schema import ProfileConfig
from training.config.run_directory import create
from training.errors import ConfigError, DataError, ExitCode


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 96 steps on 2 ranks that has done 10, of half a second each."""
    overrides = ["experiment=demo", f"run.root={tmp_path}", "run.id=a"]
    directory = create(compose(overrides), overrides)
    lines = [{"kind": "start", "world_size": 2}, {"kind": "step", "step": 10, "seconds": 0.5}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_the_steps_begin_when_every_rank_has_had_time_to_look(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--steps", "3", "--ranks", "1,0", "--memory"]) == ExitCode.DONE
    assert read_profile_request(run) == ProfileConfig(steps=[22, 23, 24], ranks=[0, 1], memory=True)
    assert capsys.readouterr().out == f"{run / 'profile.json'}: steps 22 to 24 of rank 0, 1\n"


def test_before_its_first_step_a_run_can_be_asked_too(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert request_for(run, num_steps=1, ranks="1", memory=False) == ProfileConfig(steps=[7], ranks=[1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--ranks", "2"], "the run has ranks 0 to 1"),
        (["--ranks", "-1"], "the run has ranks 0 to 1"),
        (["--ranks", "all"], "the run has ranks 0 to 1"),
        (["--steps", "0"], "it is not 1 to 50"),
        (["--steps", "51"], "it is not 1 to 50"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *options]) == ExitCode.BAD_CONFIG
    assert reason in capsys.readouterr().err
    assert read_profile_request(run) is None


def test_a_run_at_its_end_is_refused(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 90, "seconds": 0.5}\n')
    with pytest.raises(ConfigError, match="the run is at step 90 of 96"):
        request_for(run, num_steps=1, ranks="0", memory=False)
    (run / "stages.json").write_text('{"state": "done", "stages": []}')
    with pytest.raises(ConfigError, match="the run is done"):
        request_for(run, num_steps=1, ranks="0", memory=False)


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": [0]}', '{"steps": "all"}', '{"ranks": [-1]}', "1" * 2**21])
def test_a_file_that_is_no_request_is_refused_with_the_command_that_writes_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(DataError, match=r"asks for no profile.*\n.*launch\.profile"):
        read_profile_request(tmp_path)

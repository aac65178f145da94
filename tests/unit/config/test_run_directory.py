"""Which directory a start uses."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from training.config.load import compose, config_hash, load_frozen
from training.config.run_directory import find_unfinished, is_done, new_run_id, resolve
from training.config.schema import Resume, ResumeConfig, RunConfig
from training.errors import ConfigError, StorageError

SMOKE = compose(["experiment=smoke"])


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return replace(SMOKE, run=replace(SMOKE.run, root=str(tmp_path / "runs")))


def with_resume(config: RunConfig, mode: Resume, *, run_id: str | None = None, allow: Sequence[str] = ()) -> RunConfig:
    return replace(config, resume=ResumeConfig(mode=mode, allow=list(allow)), run=replace(config.run, id=run_id))


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    return replace(config, run=replace(config.run, seed=seed))


def with_lr(config: RunConfig, lr: float) -> RunConfig:
    return replace(config, optimizer=replace(config.optimizer, lr=lr))


def with_stage_after(config: RunConfig, name: str) -> RunConfig:
    return replace(config, stages={**config.stages, name: config.stages["anneal"]})


def finish(directory: Path, state: str = "done", complete: Sequence[str] = ("pretrain", "anneal")) -> None:
    """A ledger as far as starts read it."""
    entries = [{"name": n, "checkpoint": n if n in complete else None} for n in load_frozen(directory).stages]
    (directory / "stages.json").write_text(json.dumps({"state": state, "stages": entries}))


def save_checkpoint(directory: Path) -> None:
    (directory / "checkpoints" / "step-00000004").mkdir(parents=True)


def test_a_new_run_has_its_config_overrides_and_environment(config: RunConfig) -> None:
    directory = resolve(config, ["experiment=smoke"])
    assert re.fullmatch(r"\d{8}-\d{6}-smoke-[0-9a-f]{6}", directory.name)
    assert directory.name.endswith(config_hash(config)[:6])
    assert load_frozen(directory).run.id == directory.name
    assert config_hash(load_frozen(directory)) == config_hash(config)
    assert yaml.safe_load((directory / "overrides.yaml").read_text()) == ["experiment=smoke"]
    environment = json.loads((directory / "environment.json").read_text())
    assert {"python", "platform", "hostname", "packages", "git_commit"} <= set(environment)
    assert environment["packages"]["deepspeed"]


def test_environment_variables_are_not_written_down(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sesame-opens")
    directory = resolve(config, [])
    assert not [path for path in directory.rglob("*") if path.is_file() and "sesame-opens" in path.read_text()]


def test_two_starts_in_the_same_second_get_two_directories(config: RunConfig) -> None:
    directories = {resolve(config, []) for _ in range(5)}
    assert len(directories) == 5
    assert all(load_frozen(directory).run.id == directory.name for directory in directories)


def test_the_longest_name_still_makes_an_id_that_is_allowed(config: RunConfig) -> None:
    named = replace(config, run=replace(config.run, name="n" * 64))
    assert len(new_run_id(named)) <= 64
    assert load_frozen(resolve(named, [])).run.name == "n" * 64


def test_never_starts_new_beside_an_unfinished_run(config: RunConfig) -> None:
    assert resolve(config, []) != resolve(config, [])


def test_never_refuses_a_named_run_that_has_checkpoints(config: RunConfig) -> None:
    named = with_resume(config, Resume.never, run_id="night")
    directory = resolve(named, [])
    assert directory.name == "night"
    assert resolve(named, []) == directory, "nothing was trained yet: nothing is lost"
    save_checkpoint(directory)
    with pytest.raises(ConfigError, match="resume=auto continues it"):
        resolve(named, [])


def test_auto_continues_the_newest_unfinished_run_of_the_same_numbers(config: RunConfig) -> None:
    auto = with_resume(config, Resume.auto)
    first = resolve(auto, [])
    other_numbers = resolve(with_seed(config, 5), [])
    assert resolve(auto, ["again"]) == first != other_numbers
    assert yaml.safe_load((first / "overrides.yaml").read_text()) == ["again"]
    finish(first, "blocked")
    assert resolve(auto, []) == first
    finish(first)
    second = resolve(auto, [])
    assert second != first
    newer = resolve(config, [])
    assert find_unfinished(config) == max(second, newer)


def test_auto_does_not_continue_a_run_of_another_name(config: RunConfig) -> None:
    resolve(config, [])
    renamed = replace(config, run=replace(config.run, name="other"))
    assert find_unfinished(renamed) is None


def test_auto_continues_a_named_run_and_starts_it_if_there_is_none(config: RunConfig) -> None:
    auto = with_resume(config, Resume.auto, run_id="night")
    directory = resolve(auto, [])
    save_checkpoint(directory)
    assert resolve(auto, []) == directory


def test_continuing_freezes_what_may_change_between_attempts(config: RunConfig) -> None:
    directory = resolve(config, [])
    more_often = replace(config, checkpoint=replace(config.checkpoint, every_steps=1))
    assert resolve(with_resume(more_often, Resume.auto), []) == directory
    frozen = load_frozen(directory)
    assert (frozen.resume.mode, frozen.checkpoint.every_steps, frozen.run.id) == (Resume.auto, 1, directory.name)


@pytest.mark.parametrize("resume", [Resume.auto, Resume.must])
def test_a_named_run_with_other_numbers_is_refused_with_both_values(config: RunConfig, resume: Resume) -> None:
    directory = resolve(with_resume(config, Resume.never, run_id="night"), [])
    before = (directory / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"run\.seed=5: the earlier start had 0"):
        resolve(with_resume(with_seed(config, 5), resume, run_id="night"), [])
    assert (directory / "config.yaml").read_bytes() == before


def test_another_layout_and_world_size_go_on_with_the_same_run(config: RunConfig) -> None:
    directory = resolve(config, [])
    wider = compose(["experiment=smoke", "cluster.processes_per_node=4", "stages.pretrain.parallel.zero_stage=1"])
    wider = replace(wider, run=config.run)
    assert resolve(with_resume(wider, Resume.must), []) == directory
    assert load_frozen(directory).world_size == 4


def test_a_guarded_change_needs_resume_allow_and_is_then_frozen(config: RunConfig) -> None:
    directory = resolve(with_resume(config, Resume.never, run_id="night"), [])
    slower = with_lr(config, 1e-5)
    with pytest.raises(ConfigError, match=r"resume\.allow=\[optimizer\.lr\]"):
        resolve(with_resume(slower, Resume.auto, run_id="night"), [])
    assert load_frozen(directory).optimizer.lr == config.optimizer.lr
    assert resolve(with_resume(slower, Resume.auto, run_id="night", allow=["optimizer.lr"]), []) == directory
    assert load_frozen(directory).optimizer.lr == 1e-5
    assert resolve(with_resume(slower, Resume.auto, run_id="night"), []) == directory, "nothing changes any more"


def test_auto_takes_the_newest_run_that_allowed_changes_fit_unless_one_fits_exactly(config: RunConfig) -> None:
    def named(time: str, made: RunConfig) -> Path:
        return resolve(with_resume(made, Resume.never, run_id=f"20260101-{time}-smoke"), [])

    exact, older, newer, _reseeded = (
        named("000001", with_lr(config, 1e-5)),
        named("000002", config),
        named("000003", config),
        named("000004", with_seed(config, 5)),
    )
    slower = with_lr(config, 1e-5)
    assert find_unfinished(slower) == exact
    finish(exact)
    assert find_unfinished(slower) is None
    allowing = with_resume(slower, Resume.auto, allow=["optimizer.*"])
    assert find_unfinished(allowing) == newer
    finish(newer)
    assert find_unfinished(allowing) == older
    assert find_unfinished(with_resume(slower, Resume.auto, allow=["precision"])) is None


def test_what_a_complete_training_stage_was_trained_with_cannot_change(config: RunConfig) -> None:
    directory = resolve(with_resume(config, Resume.never, run_id="night"), [])
    allow = ["stages.*.tokens"]
    longer = {name: replace(stage, tokens=2 * stage.tokens) for name, stage in config.stages.items()}
    one = replace(config, stages={**config.stages, "anneal": longer["anneal"]})
    finish(directory, "failed", complete=["pretrain"])
    with pytest.raises(ConfigError, match=r"stages\.pretrain\.tokens=(.|\n)*is complete"):
        resolve(with_resume(replace(config, stages=longer), Resume.auto, run_id="night", allow=allow), [])
    assert resolve(with_resume(one, Resume.auto, run_id="night", allow=allow), []) == directory


def test_a_done_run_goes_on_only_with_a_training_stage_added_at_the_end(config: RunConfig) -> None:
    directory = resolve(with_resume(config, Resume.never, run_id="night"), [])
    finish(directory)
    with pytest.raises(ConfigError, match=r"run is done(.|\n)*resume\.allow=\[stages\.NAME\]"):
        resolve(with_resume(config, Resume.auto, run_id="night"), [])
    more = with_stage_after(config, "late")
    assert resolve(with_resume(more, Resume.must, run_id="night", allow=["stages.late"]), []) == directory
    assert list(load_frozen(directory).stages) == ["pretrain", "anneal", "late"]
    assert resolve(with_resume(more, Resume.must, run_id="night"), []) == directory


def test_checkpoints_on_fast_storage_count_as_the_runs(config: RunConfig, tmp_path: Path) -> None:
    fast = replace(config, checkpoint=replace(config.checkpoint, fast_root=str(tmp_path / "fast")))
    named = with_resume(fast, Resume.never, run_id="night")
    resolve(named, [])
    (tmp_path / "fast" / "night" / "step-00000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match="resume=auto continues it"):
        resolve(named, [])


def test_must_refuses_to_start_fresh_and_names_what_is_unfinished(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="no unfinished run called smoke"):
        resolve(with_resume(config, Resume.must), [])
    other = resolve(with_seed(config, 5), [])
    with pytest.raises(ConfigError, match=other.name):
        resolve(with_resume(config, Resume.must), [])
    with pytest.raises(ConfigError, match="no run directory"):
        resolve(with_resume(config, Resume.must, run_id="nowhere"), [])
    assert [path.name for path in Path(config.run.root).iterdir()] == [other.name], "a refusal makes nothing"


def test_must_continues_what_is_there(config: RunConfig) -> None:
    directory = resolve(config, [])
    assert resolve(with_resume(config, Resume.must), []) == directory


def test_a_directory_of_another_version_is_no_candidate(config: RunConfig) -> None:
    stale = Path(config.run.root) / "20200101-000000-smoke-000000"
    stale.mkdir(parents=True)
    (stale / "config.yaml").write_text("run: {name: smoke, colour: red}\n")
    assert find_unfinished(config) is None


@pytest.mark.parametrize(
    ("content", "done"), [('{"state": "done"}', True), ('{"state": "running"}', False), ("{", False)]
)
def test_only_a_ledger_that_says_done_counts_as_done(tmp_path: Path, content: str, done: bool) -> None:
    assert not is_done(tmp_path)
    (tmp_path / "stages.json").write_text(content)
    assert is_done(tmp_path) is done


def test_one_training_stage_may_count_as_done_before_the_run_is(tmp_path: Path) -> None:
    stages = [{"name": "pretrain", "status": "promoted"}, {"name": "anneal", "status": "trained"}]
    (tmp_path / "stages.json").write_text(json.dumps({"state": "running", "stages": stages}))
    assert is_done(tmp_path, until="pretrain")
    assert not is_done(tmp_path, until="anneal")
    assert not is_done(tmp_path)


def test_a_root_that_cannot_be_made_is_a_storage_error(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = replace(config, run=replace(config.run, root=os.fspath(tmp_path / "file" / "runs")))
    with pytest.raises(StorageError, match=r"choose another run\.root"):
        resolve(blocked, [])

"""Names become parts of paths, so they cannot lead out; paths are what a file system can have."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.config.checks import check
from training.config.load import compose
from training.config.run_directory import find_unfinished, resolve
from training.config.schema import Resume, ResumeConfig, RunConfig
from training.errors import ConfigError

SMOKE = compose(["experiment=smoke"])
HOSTILE_NAMES = [
    "../x",
    "..",
    ".",
    ".hidden",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "-rf",
    "--help",
    "a b",
    "a\nb",
    "a\n",
    "a\0b",
    "x" * 65,
    "x" * 4096,
    "",
    " ",
    "$(id)",
    "`id`",
    "a;id",
    "a&b",
    "a|b",
    "a>b",
    "a*",
    "~",
    "ру́н",  # Cyrillic that looks like Latin
    "runѕ",
    "ｒｕｎ",  # full width
    "run\u202egnp",  # right-to-left override
    "run\u200b",  # zero width
    "\ud800",
]


def with_name(place: str, name: str) -> RunConfig:
    sources, suites, stages = SMOKE.data.sources, SMOKE.eval.suites, SMOKE.stages
    match place:
        case "run.name":
            return replace(SMOKE, run=replace(SMOKE.run, name=name))
        case "run.id":
            return replace(SMOKE, run=replace(SMOKE.run, id=name))
        case "stages":
            return replace(SMOKE, stages={**stages, name: stages["anneal"]})
        case "eval.suites":
            return replace(SMOKE, eval=replace(SMOKE.eval, suites={**suites, name: suites["quick"]}))
        case _:
            more = {**sources, name: next(iter(sources.values()))}
            return replace(SMOKE, data=replace(SMOKE.data, sources=more))


@pytest.mark.parametrize("place", ["run.name", "run.id", "stages", "eval.suites", "data.sources"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_could_lead_out_is_refused(name: str, place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(with_name(place, name))
    assert refused.value.key == place
    assert len(str(refused.value)) < 500
    assert all(character.isprintable() or character == "\n" for character in str(refused.value))


@pytest.mark.parametrize("name", ["..", "a/b", "a\nb", "x" * 129, "a?b", "-a", ""])
@pytest.mark.parametrize("key", ["project", "entity"])
def test_a_name_that_could_change_an_address_is_refused(name: str, key: str) -> None:
    wandb = replace(SMOKE.reporting.wandb, **{key: name})
    with pytest.raises(ConfigError, match=rf"reporting\.wandb\.{key}"):
        check(replace(SMOKE, reporting=replace(SMOKE.reporting, wandb=wandb)))


def with_path(key: str, path: str) -> RunConfig:
    match key:
        case "run.root":
            return replace(SMOKE, run=replace(SMOKE.run, root=path))
        case "data.prepared_root":
            return replace(SMOKE, data=replace(SMOKE.data, prepared_root=path))
        case "checkpoint.fast_root":
            return replace(SMOKE, checkpoint=replace(SMOKE.checkpoint, fast_root=path))
        case _:
            return replace(SMOKE, init_from=f"hf:{path}")


@pytest.mark.parametrize("key", ["run.root", "data.prepared_root", "checkpoint.fast_root", "init_from"])
@pytest.mark.parametrize("path", ["/a\0b", "/a\nb", "/\x1b[2J", "/" + "x" * 256, "/x" * 2048, "/\ud8ff"])
def test_a_path_that_no_file_system_has_is_refused(path: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(with_path(key, path))
    assert refused.value.key == key
    assert len(str(refused.value)) < 500


def test_a_relative_path_that_begins_with_a_dash_is_no_option_to_anybody(tmp_path: Path) -> None:
    assert Path(compose(["experiment=smoke", "run.root=-rf"]).run.root) == Path.cwd() / "-rf"


@pytest.fixture
def linked(tmp_path: Path) -> RunConfig:
    """A run root in which `evil` is a link to a folder outside."""
    root = tmp_path / "runs"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "evil").symlink_to(tmp_path / "outside")
    return replace(SMOKE, run=replace(SMOKE.run, root=str(root), id="evil"))


@pytest.mark.parametrize("mode", list(Resume))
def test_a_run_directory_that_is_a_link_is_refused(linked: RunConfig, mode: Resume, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a link to"):
        resolve(replace(linked, resume=ResumeConfig(mode=mode)), [])
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_to_a_run_is_none_that_is_gone_on_with(tmp_path: Path) -> None:
    config = replace(SMOKE, run=replace(SMOKE.run, root=str(tmp_path / "runs")))
    directory = resolve(config, [])
    (directory.parent / "zzz-latest").symlink_to(directory.name)
    assert find_unfinished(config) == directory
    named = replace(config, run=replace(config.run, id="zzz-latest"), resume=ResumeConfig(mode=Resume.auto))
    with pytest.raises(ConfigError, match=f"run.id={directory.name} names it"):
        resolve(named, [])

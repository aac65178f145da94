"""init_from: what it may name, and when that has to be there."""

from pathlib import Path

import pytest

from training.config.initial_weights import WeightsFormat, split_initial_weights
from training.config.load import compose, freeze, load_frozen
from training.errors import ConfigError


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    folder = tmp_path / "smollm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (4, 12, 8):
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    return tmp_path / "run"


def refusal(init_from: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        compose([f"init_from='{init_from}'"])
    assert refused.value.key == "init_from"
    return refused.value


def test_both_formats_are_accepted_and_relative_paths_count_from_the_launch_directory(
    hf: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf.parent)
    init_from = compose(["init_from=hf:smollm"]).init_from
    init_from = compose(["init_from=hf:smollm"]).init_from
    assert init_from is not None
    assert init_from == f"hf:{hf}"
    assert split_initial_weights(init_from) == (WeightsFormat.hf, hf)
    assert compose(["init_from=checkpoint:run/checkpoints/step-00000004"]).init_from == (
        f"checkpoint:{run}/checkpoints/step-00000004"
    )
    assert compose([]).init_from is None


def test_a_missing_or_mistyped_prefix_is_refused_with_the_one_that_fits(hf: Path, run: Path, tmp_path: Path) -> None:
    assert f"init_from=hf:{hf} works" in refusal(str(hf)).remedy
    newest = run / "checkpoints" / "step-00000012"
    assert f"init_from=checkpoint:{newest} works" in refusal(str(newest)).remedy
    assert f"did you mean init_from=checkpoint:{newest}?" in refusal(f"checkpiont:{newest}").remedy
    for nonsense in (str(tmp_path), "hf:", "s3:bucket", ":x"):
        assert "init_from=hf:DIR" in refusal(nonsense).remedy


def test_a_directory_that_does_not_hold_what_the_prefix_says_is_refused(hf: Path, run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints" / "step-00000012"
    assert "no such directory" in refusal(f"hf:{tmp_path}/nowhere").reason
    assert f"init_from=checkpoint:{newest} works" in refusal(f"hf:{newest}").remedy
    assert f"init_from=hf:{hf} works" in refusal(f"checkpoint:{hf}").remedy
    for around in (run, run / "checkpoints"):
        assert f"init_from=checkpoint:{newest} is the newest" in refusal(f"checkpoint:{around}").remedy
    (hf / "model-00001-of-00002.safetensors").rename(hf / "pytorch_model.bin")
    assert "can run code" in refusal(f"hf:{hf}").reason


def test_a_run_that_goes_on_needs_the_directory_no_longer(hf: Path, tmp_path: Path) -> None:
    config = compose([f"init_from=hf:{hf}"])
    freeze(config, tmp_path)
    (hf / "config.json").unlink()
    assert load_frozen(tmp_path) == config
    assert compose([f"init_from=hf:{hf}", "resume=must"]).init_from == f"hf:{hf}"
    assert "resume=must" in refusal(f"hf:{tmp_path}/nowhere").remedy

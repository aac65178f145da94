"""What is refused before anything is loaded; tests/integration/test_hugging_face_model.py loads a real model."""

from pathlib import Path

import pytest

from eval.hugging_face_model import hugging_face_model
from training.errors import ConfigError


def refused(directory: Path) -> str:
    with pytest.raises(ConfigError) as error:
        hugging_face_model(directory, prefix_token_id=0)
    assert "\n  -> " in str(error.value)
    return str(error.value)


def test_a_name_of_a_hub_is_no_directory() -> None:
    assert "copy the model to this machine" in refused(Path("partner/model"))


def test_weights_that_can_run_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "holds no *.safetensors\n" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "only pytorch_model.bin, which can run code" in refused(tmp_path)


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert "merge the adapter" in refused(tmp_path)


def test_code_beside_a_model_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "code.Theirs"}}')
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "model.safetensors").write_text("")
    refused(tmp_path)
    assert not (tmp_path / "ran").exists()

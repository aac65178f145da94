"""Hugging Face directories as transformers writes them, small, and ways to spoil them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.models.transformers_models import transformers_model
from training.config.schema import ModelConfig

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write_model(directory: Path, config: ModelConfig, *, dtype: str = "F32", shard_size: str = "1GB") -> Path:
    """A random model, saved by transformers."""
    theirs = transformers_model(config)
    biases = {name: buffer.clone() for name, buffer in theirs.named_buffers() if name.endswith("correction_bias")}
    torch.nn.Module.to(theirs, DTYPES[dtype])
    for name, bias in biases.items():  # float32 whatever the weights are, as in a model that transformers loads
        module, _, buffer = name.rpartition(".")
        setattr(theirs.get_submodule(module), buffer, bias)
    theirs.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def weights_of(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory, read by safetensors."""
    return {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}


def change_weights(directory: Path, changes: dict[str, Tensor | None]) -> None:
    """Set (or with None remove) tensors of a directory with one file."""
    weights = {key: value for key, value in (weights_of(directory) | changes).items() if value is not None}
    save_file({key: value.contiguous() for key, value in weights.items()}, directory / "model.safetensors")


def change_json(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys() != set()
    for key, value in left.items():
        assert value.dtype == right[key].dtype, key
        assert value.shape == right[key].shape, key
        integers = torch.int32 if value.dtype == torch.float32 else torch.int16
        assert torch.equal(value.view(integers), right[key].view(integers)), key

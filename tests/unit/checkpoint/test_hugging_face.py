import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.hugging_face_directories import (
    DTYPES,
    change_json,
    change_weights,
    weights_of,
    write_model,
)
from tests.unit.models.configs import ALL_KINDS, OTHER_KINDS, model
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.config.schema import ModelConfig
from training.errors import AutarkyError, ConfigError, CorruptCheckpoint
from training.models.hugging_face import family_for

MODEL = model()
TIED = model(tied_embeddings=True)
EMBEDDING = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelConfig, str, str], Path]:
    """Directories by (model, dtype, shard size), made once; do not write into them."""
    root = tmp_path_factory.mktemp("stored")
    made: dict[tuple[ModelConfig, str, str], Path] = {}

    def get(config: ModelConfig, dtype: str, shard_size: str) -> Path:
        key = (config, dtype, shard_size)
        if key not in made:
            made[key] = write_model(root / str(len(made)), config, dtype=dtype, shard_size=shard_size)
        return made[key]

    return get


def read(source: HuggingFaceSource, name: str, start: int, numel: int) -> torch.Tensor:
    values = np.full(numel, np.nan, dtype=np.float32)
    source.read_into(f"weight/{name}", start, values.data)
    return torch.from_numpy(values)


@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_parameter_reads_as_it_is_stored(stored: Callable[..., Path], dtype: str, shard_size: str) -> None:
    directory = stored(MODEL, dtype, shard_size)
    assert (directory / INDEX).exists() == (shard_size == "30KB")
    expected = weights_of(directory)
    with closing(HuggingFaceSource(directory, MODEL)) as source:
        assert source.shapes.keys() == expected.keys()
        for name, shape in source.shapes.items():
            assert torch.equal(read(source, name, 0, prod(shape)).reshape(shape), expected[name].float()), name
        assert source.dtypes == [dtype]
        assert source.digests() == {}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_experts_read_as_one_stack_of_what_is_stored(stored: Callable[..., Path], kind: str) -> None:
    config = OTHER_KINDS[kind]
    directory = stored(config, "BF16", "30KB")
    family, expected = family_for(config), weights_of(directory)
    with closing(HuggingFaceSource(directory, config)) as source:
        read_keys = []
        for name, shape in source.shapes.items():
            keys = [key for key, _ in family.parts_of(name, shape)]
            read_keys += keys
            whole = torch.stack([expected[key].float() for key in keys]).reshape(shape)
            assert torch.equal(read(source, name, 0, prod(shape)).reshape(shape), whole), name
    assert sorted(read_keys) == sorted(expected)


@given(data=st.data())
def test_any_range_of_a_stack_reads_its_own_bytes_and_no_more(stored: Callable[..., Path], data: st.DataObject) -> None:
    config = OTHER_KINDS["mixtral"]
    directory = stored(config, "BF16", "30KB")
    weights = weights_of(directory)
    with closing(HuggingFaceSource(directory, config)) as source:
        name = "model.layers.1.mlp.experts.down_proj"
        keys = [key for key, _ in family_for(config).parts_of(name, source.shapes[name])]
        whole = torch.cat([weights[key].float().flatten() for key in keys])
        start = data.draw(st.integers(0, len(whole)))
        numel = data.draw(st.integers(0, len(whole) - start))
        assert torch.equal(read(source, name, start, numel), whole[start : start + numel])
        assert source.bytes_read == 2 * numel


@given(data=st.data())
def test_any_range_reads_its_own_bytes_and_no_more(stored: Callable[..., Path], data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    directory = stored(MODEL, dtype, "30KB")
    with closing(HuggingFaceSource(directory, MODEL)) as source:
        name = data.draw(st.sampled_from(sorted(source.shapes)))
        total = prod(source.shapes[name])
        start = data.draw(st.integers(0, total))
        numel = data.draw(st.integers(0, total - start))
        values = read(source, name, start, numel)
        assert torch.equal(values, weights_of(directory)[name].float().flatten()[start : start + numel])
        assert source.bytes_read == numel * (4 if dtype == "F32" else 2)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_model_is_read_from_config_json(stored: Callable[..., Path], kind: str) -> None:
    directory = stored(ALL_KINDS[kind], "F32", "1GB")
    config = read_model_config(directory)
    assert HuggingFaceSource(directory, config).shapes == HuggingFaceSource(directory, ALL_KINDS[kind]).shapes


def test_links_of_a_hub_cache_are_followed(stored: Callable[..., Path], tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(stored(MODEL, "F32", "30KB"), blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / path.name)
    assert read(HuggingFaceSource(snapshot, MODEL), "model.norm.weight", 0, 48).isfinite().all()


def test_a_tied_copy_must_be_the_embedding_bit_by_bit(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", TIED)
    assert HuggingFaceSource(directory, TIED).notes == []
    embedding = weights_of(directory)[EMBEDDING]
    change_weights(directory, {"lm_head.weight": embedding.clone()})
    source = HuggingFaceSource(directory, TIED)
    assert "lm_head.weight, bitwise equal" in source.notes[0]
    assert "lm_head.weight" not in source.shapes
    assert source.bytes_read == 0
    for other in (embedding.clone().index_fill_(0, torch.tensor([95]), 1.0), embedding[:-1]):
        change_weights(directory, {"lm_head.weight": other})
        with pytest.raises(CorruptCheckpoint, match=r"ties lm_head\.weight"):
            HuggingFaceSource(directory, TIED)


def test_zero_and_minus_zero_are_not_the_same_weights(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", TIED)
    zeros = torch.zeros(96, 48)
    change_weights(directory, {EMBEDDING: zeros, "lm_head.weight": -zeros})
    with pytest.raises(CorruptCheckpoint, match="ties"):
        HuggingFaceSource(directory, TIED)


def test_old_buffers_are_left_out_and_noted(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    change_weights(directory, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert "inv_freq" in HuggingFaceSource(directory, MODEL).notes[0]


def _pickled_only(directory: Path) -> None:
    os.rename(directory / "model.safetensors", directory / "pytorch_model.bin")


def _index(weight_map: object) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        os.rename(directory / "model.safetensors", directory / "part.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def _wrong_index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        weight_map = dict.fromkeys(weights_of(directory), "part.safetensors")
        change(weight_map)
        _index(weight_map)(directory)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], object], type[AutarkyError], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), CorruptCheckpoint, "config.json cannot be read"),
    "torn config": (lambda d: (d / "config.json").write_text("{"), CorruptCheckpoint, "not readable JSON"),
    "a list": (lambda d: (d / "config.json").write_text("[]"), CorruptCheckpoint, "an object is expected"),
    "config with NaN": (
        lambda d: (d / "config.json").write_text('{"rope_theta": NaN}'),
        CorruptCheckpoint,
        "NaN is no number",
    ),
    "another model": (
        lambda d: change_json(d / "config.json", {"intermediate_size": 81, "vocab_size": 97}),
        ConfigError,
        r"vocab_size is 97, model.vocab_size is 96; intermediate_size is 81, model.ffn_size is 80",
    ),
    "remote code": (
        lambda d: change_json(d / "config.json", {"auto_map": {"AutoModel": "x.Y"}}),
        ConfigError,
        "auto_map",
    ),
    "pickled": (_pickled_only, CorruptCheckpoint, r"pytorch_model.bin; only safetensors are read"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), CorruptCheckpoint, "holds no weights"),
    "two of them": (lambda d: (d / INDEX).write_text("{}"), CorruptCheckpoint, "holds both"),
    "a key too many": (
        lambda d: change_weights(d, {"model.layers.3.mlp.up_proj.weight": torch.ones(2)}),
        CorruptCheckpoint,
        r"no place for model.layers.3.mlp.up_proj.weight",
    ),
    "a key too few": (
        lambda d: change_weights(d, {"lm_head.weight": None}),
        CorruptCheckpoint,
        r"lm_head.weight of the model are in no file",
    ),
    "wrong shape": (
        lambda d: change_weights(d, {"model.norm.weight": torch.ones(47)}),
        CorruptCheckpoint,
        r"model.norm.weight has shape \(47,\), the model's is \(48,\)",
    ),
    "transposed": (
        lambda d: change_weights(d, {EMBEDDING: torch.ones(48, 96)}),
        CorruptCheckpoint,
        r"shape \(48, 96\)",
    ),
    "integers": (
        lambda d: change_weights(d, {"model.norm.weight": torch.ones(48, dtype=torch.int64)}),
        CorruptCheckpoint,
        "dtype I64; known are F32, BF16, F16",
    ),
    "no map": (_index(None), CorruptCheckpoint, "no weight_map"),
    "a path": (_index({"a": "../part.safetensors"}), CorruptCheckpoint, "not a plain file name"),
    "an absolute path": (_index({"a": "/etc/x.safetensors"}), CorruptCheckpoint, "not a plain file name"),
    "a pickle in the index": (_index({"a": "pytorch_model.bin"}), CorruptCheckpoint, "not a plain file name"),
    "a file that is not there": (
        _index({"a": "b.safetensors"}),
        CorruptCheckpoint,
        "b.safetensors: there is no such file",
    ),
    "a pipe": (
        lambda d: ((d / "model.safetensors").unlink(), os.mkfifo(d / "model.safetensors")),
        CorruptCheckpoint,
        "there is no such file",
    ),
    "a key the index does not know": (
        _wrong_index(lambda m: m.pop("lm_head.weight")),
        CorruptCheckpoint,
        "holds lm_head.weight, which",
    ),
    "a key the file does not hold": (
        _wrong_index(lambda m: m.update(other="part.safetensors")),
        CorruptCheckpoint,
        "does not hold other",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_directory_that_is_not_the_model_is_refused(tmp_path: Path, case: str) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    HuggingFaceSource(directory, MODEL)
    spoil, kind, text = SPOILT[case]
    spoil(directory)
    with pytest.raises(kind, match=text):
        HuggingFaceSource(directory, MODEL)


def test_a_file_that_shrinks_under_the_reader_is_noticed(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "hf", MODEL)
    source = HuggingFaceSource(directory, MODEL)
    os.truncate(directory / "model.safetensors", 5000)
    with pytest.raises(CorruptCheckpoint, match="ends in the middle"):
        read(source, "model.norm.weight", 0, 48)

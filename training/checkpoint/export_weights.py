"""The weights of a checkpoint -> a Hugging Face directory, checked bit by bit before it counts."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from training.checkpoint.digest import MODULUS, digest
from training.checkpoint.hugging_face import CONFIG_NAME, INDEX_NAME, ONE_FILE_NAME, HuggingFaceSource
from training.checkpoint.load import CheckpointReader
from training.checkpoint.logits_check import check_logits
from training.checkpoint.manifest import WEIGHT
from training.checkpoint.tensor_file import ELEMENT_BYTES, TensorFileWriter, TensorHeader
from training.checkpoint.tensor_stream import MAX_FILE_BYTES, bits, copy_tensor, in_files, rounded, stream
from training.checkpoint.tokenizer_files import copy_tokenizer, write_json
from training.checkpoint.whole_directory import whole_directory
from training.config.schema import ModelConfig, Precision
from training.config.typed import to_model_config
from training.errors import ConfigError, CorruptCheckpoint, StorageError
from training.models.hugging_face import family_for, to_config_json
from training.models.shapes import parameter_shapes
from training.models.sizes import num_parameters

_DTYPES = {Precision.fp32: ("F32", "float32"), Precision.bf16: ("BF16", "bfloat16")}
"""Of safetensors and of config.json."""
_ROUTER_BIAS = ".mlp.gate.bias"
"""End of the names of what stays float32 in any export: rounded, it would choose other experts.

transformers keeps it so too (DeepseekV3PreTrainedModel._keep_in_fp32_modules_strict)."""


def export_weights(
    checkpoint: Path,
    directory: Path,
    *,
    precision: Precision,
    tokenizer: Path | None,
    with_logits: bool,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> list[str]:
    """Write a checkpoint's weights as a Hugging Face directory, whole and checked; returns what was done, for people.

    Blocks of multi-token prediction are left out: they serve training alone. Memory does not grow with the model,
    except for the comparison of logits, which holds it whole.

    Args:
        checkpoint: a committed checkpoint; its moments are left out.
        directory: where it goes; must not exist, or be empty.
        precision: of the exported weights.
        tokenizer: directory with a tokenizer to put beside them.
        with_logits: whether the result is run in transformers and compared with our decoder.
        max_file_bytes: of one file.

    Raises:
        CorruptCheckpoint: the checkpoint is damaged, or the result is not what it must be.
        ConfigError: the tokenizer does not fit, or transformers is missing for the comparison.
        StorageError: the directory is in use, or the disk does not take it.
    """
    dtype, config_dtype = _DTYPES[precision]
    with closing(CheckpointReader(checkpoint)) as reader, whole_directory(directory) as work:
        whole = _model_of(reader)
        model = replace(whole, prediction=None)  # transformers runs no block that predicts further tokens
        no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        ids = copy_tokenizer(tokenizer, work, model.vocab_size) if tokenizer is not None else no_ids
        write_json(work / CONFIG_NAME, to_config_json(model, family_for(model)) | ids | {"dtype": config_dtype})
        num_tensors, num_files = _write(work, model, dtype, reader, max_file_bytes)
        _check(work, model, dtype, reader)
        difference = check_logits(work, model, partial(_read_rounded, reader, dtype)) if with_logits else None
    compared = "not compared with transformers" if difference is None else f"within {difference:.2g} of transformers"
    return [
        f"{num_parameters(model):,} parameters in {num_tensors} tensors and {num_files} files of {precision}",
        "read back: names, shapes, digests and every bit as in the checkpoint"
        + (", rounded to bf16" if precision is Precision.bf16 else ""),
        f"logits: {compared}",
        *([f"left out: {n} blocks of multi-token prediction"] if (n := whole.num_prediction_blocks) else []),
        *([] if tokenizer is not None else ["without a tokenizer (--tokenizer DIR adds one)"]),
    ]


def _model_of(reader: CheckpointReader) -> ModelConfig:
    """Return the model that a checkpoint is of; its weights must be that model's."""
    values = reader.manifest.config.get("model")
    try:
        model = to_model_config(values if isinstance(values, Mapping) else {})
    except ConfigError as error:
        raise CorruptCheckpoint(f"{reader.checkpoint}: the manifest describes no model we know: {error}") from error
    found, expected = reader.shapes, parameter_shapes(model)
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        lines = [f"{name} has shape {found.get(name)}, the model's is {expected.get(name)}" for name in odd[:3]]
        raise CorruptCheckpoint(f"{reader.checkpoint}: {'; '.join(lines)} ({len(odd)} in all)")
    return model


def _write(
    work: Path, model: ModelConfig, dtype: str, reader: CheckpointReader, max_file_bytes: int
) -> tuple[int, int]:
    """Write the weights' files, and the index where there is more than one; returns how many tensors and files."""
    family = family_for(model)
    sources: dict[str, tuple[str, int]] = {}  # key -> parameter, and its first element there
    headers: list[TensorHeader] = []
    for name, shape in parameter_shapes(model).items():
        start = 0
        for key, part_shape in family.parts_of(name, shape):
            sources[key] = name, start
            headers.append(TensorHeader(key=key, dtype=_dtype_of(name, dtype), shape=part_shape))
            start += prod(part_shape)
    headers.sort(key=lambda header: ELEMENT_BYTES[header.dtype], reverse=True)  # so that each is aligned
    groups = in_files(headers, max_file_bytes)
    file_names = [ONE_FILE_NAME]
    if len(groups) > 1:
        file_names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
        index = {
            "metadata": {"total_size": sum(header.num_bytes for header in headers)},
            "weight_map": {h.key: name for name, group in zip(file_names, groups, strict=True) for h in group},
        }
        write_json(work / INDEX_NAME, index)
    for file_name, group in zip(file_names, groups, strict=True):
        with TensorFileWriter(work / file_name, group, {"format": "pt"}) as writer:  # transformers asks for the format
            for header in group:
                name, start = sources[header.key]
                read_into = partial(_read_from, reader, start)
                copy_tensor(read_into, f"{WEIGHT}/{name}", header.shape, header.dtype, writer)
    return len(headers), len(groups)


def _dtype_of(name: str, dtype: str) -> str:
    """Return the dtype that a parameter is exported in, where most are in `dtype`."""
    return "F32" if name.endswith(_ROUTER_BIAS) else dtype


def _read_from(reader: CheckpointReader, begin: int, tensor: str, start: int, destination: memoryview) -> None:
    """Fill a destination with elements of a tensor, counted from `begin`."""
    reader.read_into(tensor, begin + start, destination)


def _read_rounded(reader: CheckpointReader, dtype: str, tensor: str, start: int, destination: memoryview) -> None:
    """Fill a destination with a checkpoint's values as they were exported."""
    reader.read_into(tensor, start, destination)
    values = np.frombuffer(destination, dtype=np.float32)
    values[:] = rounded(values, _dtype_of(tensor, dtype))


def _check(work: Path, model: ModelConfig, dtype: str, reader: CheckpointReader) -> None:
    """Open the result as any directory from elsewhere, and compare it with the checkpoint, read once more."""
    with closing(HuggingFaceSource(work, model)) as written:
        digests = reader.digests()
        for name, shape in written.shapes.items():
            tensor, total, precision = f"{WEIGHT}/{name}", 0, _dtype_of(name, dtype)
            if (found := written.dtypes_of(name)) != {precision}:
                raise StorageError(f"{work} holds {name} in {sorted(found)}, {precision} was to be written")
            for (start, ours), (_, theirs) in zip(
                stream(reader.read_into, tensor, shape), stream(written.read_into, tensor, shape), strict=True
            ):
                total += digest(bits(ours), start)
                if not np.array_equal(bits(rounded(ours, precision)), bits(theirs)):
                    raise StorageError(
                        f"{work}: {name} was read back otherwise than written, from element {start} on\n"
                        "  -> nothing was exported; the storage does not keep what it is given"
                    )
            if (computed := total % MODULUS) != digests[tensor]:
                raise CorruptCheckpoint(
                    f"{reader.checkpoint}: {tensor} has digest {computed:016x}, {digests[tensor]:016x} was written\n"
                    f"  -> python -m training.checkpoint verify {reader.checkpoint} names the damaged file"
                )

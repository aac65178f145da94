"""Weights from elsewhere -> a checkpoint of step 0, which any layout loads."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from math import prod
from pathlib import Path

from training.checkpoint.digest import MODULUS, digest
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.checkpoint.load import CheckpointReader
from training.checkpoint.manifest import MANIFEST_NAME, WEIGHT, File, Manifest, Progress, Slice
from training.checkpoint.tensor_file import TensorFileWriter, TensorHeader
from training.checkpoint.tensor_stream import MAX_FILE_BYTES, bits, copy_tensor, in_files, stream
from training.checkpoint.whole_directory import whole_directory
from training.durable_files import write_durably
from training.errors import ConfigError, StorageError

_SCHEME = "hf:"
_START = Progress(
    step=0,
    training_stage="",
    stage_step=0,
    samples=0,
    tokens=0,
    optimizer_updates=0,
    skips_in_a_row=0,
    lr=0.0,
    config_hash="",
    data_fingerprint="",
)


def import_weights(source: str, directory: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> tuple[Path, Manifest]:
    """Commit the weights of a source as `directory/step-00000000`, checked; returns the checkpoint and its manifest.

    Args:
        source: "hf:DIR", DIR being a Hugging Face directory.
        directory: folder of checkpoints, made if needed.
        max_file_bytes: of one file of the checkpoint.

    Raises:
        ConfigError: the source is none that we know, or its model none that we compute.
        CorruptCheckpoint: the weights are not those of its config.json, or a file is not as it must be.
        StorageError: the checkpoint is there already, or cannot be written; nothing is left of it.
    """
    if not source.startswith(_SCHEME):
        raise ConfigError("source", source, "says not what it is", f"give {_SCHEME}DIR for a Hugging Face directory")
    origin = Path(source.removeprefix(_SCHEME))
    model = read_model_config(origin)
    checkpoint = directory / "step-00000000"
    with closing(HuggingFaceSource(origin, model)) as weights, whole_directory(checkpoint) as work:
        slices, files = _write(weights, work, max_file_bytes)
        manifest = Manifest(
            progress=_START,
            layout="imported",
            config={"model": asdict(model)},
            attempt=0,
            slices=tuple(slices),
            files=tuple(files),
            notes=_notes(weights, origin),
        )
        write_durably(work / MANIFEST_NAME, manifest.to_json())
        _check(work)
    return checkpoint, manifest


def _write(weights: HuggingFaceSource, work: Path, max_file_bytes: int) -> tuple[list[Slice], list[File]]:
    tensors = {f"{WEIGHT}/{name}@0": (f"{WEIGHT}/{name}", shape) for name, shape in weights.shapes.items()}
    headers = [TensorHeader(key=key, dtype="F32", shape=(prod(shape),)) for key, (_, shape) in tensors.items()]
    slices: list[Slice] = []
    files: list[File] = []
    for number, group in enumerate(in_files(headers, max_file_bytes)):
        path = work / f"rank-{number:05d}.safetensors"
        with TensorFileWriter(path, group) as writer:
            for header in group:
                tensor, shape = tensors[header.key]
                slices.append(
                    Slice(
                        tensor=tensor,
                        shape=shape,
                        start=0,
                        numel=prod(shape),
                        file=path.name,
                        digest=copy_tensor(weights.read_into, tensor, shape, header.dtype, writer),
                    )
                )
        files.append(writer.file)
    return slices, files


def _notes(weights: HuggingFaceSource, origin: Path) -> Mapping[str, str]:
    notes = {"imported_from": str(origin.absolute()), "dtype": ", ".join(weights.dtypes)}
    return notes | ({"remarks": "; ".join(weights.notes)} if weights.notes else {})


def _check(work: Path) -> None:
    """Read back what was written, as any load does: every tensor's digest must be that of the values that came in."""
    with closing(CheckpointReader(work)) as reader:
        written = reader.digests()
        for name, shape in reader.shapes.items():
            tensor = f"{WEIGHT}/{name}"
            values = stream(reader.read_into, tensor, shape)
            found = sum(digest(bits(part), start) for start, part in values) % MODULUS
            if found != written[tensor]:
                raise StorageError(
                    f"{work}: {tensor} was read back with digest {found:016x}, {written[tensor]:016x} was written\n"
                    "  -> nothing was imported; the storage does not keep what it is given"
                )

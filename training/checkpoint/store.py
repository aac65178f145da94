"""Write, commit, find, verify and read checkpoints.

Commit protocol: every rank writes its slices and a small index of them into `step-N.tmp` and fsyncs both; all ranks
agree that they succeeded; rank 0 merges the indexes into the manifest, fsyncs it, renames the directory to `step-N` and
fsyncs the parent. The rename is the commit: before it nothing counts, after it everything is there. There is no
`latest` file; a scan of the directory decides.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.checkpoint.manifest import MANIFEST_NAME, File, Manifest, Progress, Slice, read_manifest
from training.durable_files import fsync, write_durably
from training.errors import CorruptCheckpoint, StorageError

Agree = Callable[[bool], bool]
"""Collective: True on every rank if and only if every rank passed True."""

_COMMITTED = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """A flat range of one parameter with its optimizer state, as one rank holds it.

    The tensors are 1-D float32 views of live state: saving reads them, loading writes into them.
    """

    parameter: str
    """Canonical name."""
    shape: tuple[int, ...]
    """Global shape of the parameter."""
    start: int
    """First element of the range in the flattened parameter."""
    tensors: dict[str, Tensor]
    """kind (weight, exp_avg, exp_avg_sq) -> values of the range."""
    is_owner: bool
    """Whether this rank writes the range (False for a replica that another rank writes)."""


def save_checkpoint(
    directory: Path,
    *,
    progress: Progress,
    layout: str,
    fragments: Sequence[Fragment],
    rank: int,
    world_size: int,
    agree: Agree,
) -> Path:
    """Write and commit one checkpoint; collective. Returns the committed directory `directory/step-N`.

    Raises:
        StorageError: on every rank, if any rank could not write; what was committed before is untouched.
    """
    final = directory / f"step-{progress.step:08d}"
    work = final.with_suffix(".tmp")
    failure: Exception | None = None
    if rank == 0:
        shutil.rmtree(work, ignore_errors=True)
    agree(True)  # the old torso is gone before anyone writes
    try:
        work.mkdir(parents=True, exist_ok=True)
        _write_slices(work, fragments, rank)
    except (OSError, SafetensorError, StorageError) as error:
        failure = error
    if agree(failure is None) and rank == 0:
        try:
            _commit(work, final, progress, layout, world_size)
        except (OSError, StorageError, CorruptCheckpoint) as error:
            failure = error
    if not agree(failure is None):
        if rank == 0:
            shutil.rmtree(work, ignore_errors=True)
        raise StorageError(
            f"checkpoint of step {progress.step} could not be written to {directory}: "
            f"{failure or 'another rank failed'}\n  -> free space or mend the storage; earlier checkpoints are whole"
        )
    return final


def _write_slices(work: Path, fragments: Sequence[Fragment], rank: int) -> None:
    name = f"rank-{rank:05d}.safetensors"
    tensors: dict[str, Tensor] = {}
    slices: list[Slice] = []
    for fragment in fragments:
        if not fragment.is_owner:
            continue
        for kind, values in fragment.tensors.items():
            tensor = f"{kind}/{fragment.parameter}"
            key = f"{tensor}@{fragment.start}"
            # A copy, because safetensors refuses tensors that share memory and these are views of one flat buffer.
            tensors[key] = values.detach().to("cpu", torch.float32, copy=True)
            slices.append(
                Slice(
                    tensor=tensor,
                    shape=fragment.shape,
                    start=fragment.start,
                    numel=values.numel(),
                    file=name,
                    key=key,
                )
            )
    save_file(tensors, work / name)
    fsync(work / name)
    file = File(name=name, num_bytes=(work / name).stat().st_size, sha256=_sha256(work / name))
    index = {"file": asdict(file), "slices": [asdict(piece) for piece in slices]}
    write_durably(work / f"rank-{rank:05d}.json", json.dumps(index))


def _commit(work: Path, final: Path, progress: Progress, layout: str, world_size: int) -> None:
    slices: list[Slice] = []
    files: list[File] = []
    for rank in range(world_size):
        path = work / f"rank-{rank:05d}.json"
        index = json.loads(path.read_text())
        files.append(File(**index["file"]))
        slices += [Slice(**{**piece, "shape": tuple(piece["shape"])}) for piece in index["slices"]]
        path.unlink()
    manifest = Manifest(progress=progress, layout=layout, slices=tuple(slices), files=tuple(files))
    write_durably(work / MANIFEST_NAME, manifest.to_json())
    fsync(work)
    os.rename(work, final)
    fsync(final.parent)


def committed(directory: Path) -> list[Path]:
    """Return the committed checkpoints under a directory, newest step first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.is_dir() and _COMMITTED.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in a committed checkpoint's name."""
    match = _COMMITTED.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def verify(checkpoint: Path, *, part: int = 0, num_parts: int = 1) -> Manifest:
    """Return the manifest after checking size and hash of every file (or of every num_parts-th, from `part`).

    Raises:
        CorruptCheckpoint: naming the first file that is missing or not as written.
    """
    manifest = read_manifest(checkpoint)
    for file in manifest.files[part::num_parts]:
        path = checkpoint / file.name
        try:
            if path.stat().st_size != file.num_bytes:
                raise CorruptCheckpoint(f"{path}: {path.stat().st_size} bytes, {file.num_bytes} were written")
            if _sha256(path) != file.sha256:
                raise CorruptCheckpoint(f"{path}: contents changed since they were written (sha256 differs)")
        except OSError as error:
            raise CorruptCheckpoint(f"{path}: {error}") from error
    return manifest


def newest_whole(directory: Path, *, rank: int, world_size: int, agree: Agree) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole and a message per newer one that is not; collective.

    Each rank hashes its share of the files, so the cost per rank does not grow with the number of ranks. A damaged
    checkpoint is renamed to `step-N.damaged`, so that the step can be committed again and nothing is lost for study.

    Raises:
        CorruptCheckpoint: on every rank: checkpoints exist, but none is whole.
    """
    rejected: list[str] = []
    candidates = committed(directory)
    for candidate in candidates:
        problem = "damaged (see another rank's log)"
        whole = True
        try:
            verify(candidate, part=rank, num_parts=world_size)
        except CorruptCheckpoint as error:
            problem, whole = str(error), False
        if agree(whole):
            return candidate, rejected
        rejected.append(problem)
        if rank == 0:
            damaged = candidate.with_suffix(".damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            os.rename(candidate, damaged)
        agree(True)
    if candidates:
        raise CorruptCheckpoint(
            f"none of the {len(candidates)} checkpoints under {directory} is whole: {'; '.join(rejected)}\n"
            "  -> restore one from a copy, or start a new run with resume=never (it will begin at step 0)"
        )
    return None, rejected


class CheckpointReader:
    """Reads any range of any tensor of a committed checkpoint, touching only the files that hold it."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.manifest = read_manifest(checkpoint)
        self._slices = self.manifest.tensors()

    def check_parameters(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Compare parameter names and shapes with a model's (all of them, or those of one pipeline stage).

        Raises:
            CorruptCheckpoint: naming what is missing or has another shape.
        """
        for parameter, shape in shapes.items():
            for kind in ("weight", "exp_avg", "exp_avg_sq"):
                pieces = self._slices.get(f"{kind}/{parameter}")
                if pieces is None:
                    raise CorruptCheckpoint(f"{self.checkpoint}: holds no {kind}/{parameter}; is it another model's?")
                if pieces[0].shape != shape:
                    raise CorruptCheckpoint(
                        f"{self.checkpoint}: {kind}/{parameter} has shape {pieces[0].shape}, the model's is {shape}"
                    )

    def read(self, tensor: str, start: int, numel: int) -> Tensor:
        """Return elements start..start+numel of a flattened tensor, float32 on CPU."""
        parts = list(self._overlaps(tensor, start, numel))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _overlaps(self, tensor: str, start: int, numel: int) -> Iterator[Tensor]:
        for piece in self._slices[tensor]:
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                with safe_open(self.checkpoint / piece.file, framework="pt") as file:
                    yield file.get_slice(piece.key)[low - piece.start : high - piece.start]


def load_fragments(checkpoint: Path, fragments: Sequence[Fragment]) -> Progress:
    """Copy a checkpoint's values into live fragments, whatever layout wrote it; returns its progress.

    Everything is read and checked before the first value is changed.

    Raises:
        CorruptCheckpoint: it does not fit the model; nothing was changed.
    """
    reader = CheckpointReader(checkpoint)
    reader.check_parameters({fragment.parameter: fragment.shape for fragment in fragments})
    values = [
        (tensor, reader.read(f"{kind}/{fragment.parameter}", fragment.start, tensor.numel()))
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    ]
    with torch.no_grad():
        for tensor, value in values:
            tensor.copy_(value)
    return reader.manifest.progress


def prune(directory: Path, *, keep_last: int, keep_steps: frozenset[int]) -> list[Path]:
    """Remove checkpoints but the newest `keep_last` and those of `keep_steps`; one rank calls it. Returns the removed.

    A checkpoint is first renamed out of the way, so that a kill leaves no half-deleted one that looks committed.
    """
    removed = []
    for checkpoint in committed(directory)[keep_last:]:
        if step_of(checkpoint) not in keep_steps:
            doomed = checkpoint.with_suffix(".old")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(checkpoint, doomed)
            shutil.rmtree(doomed)
            removed.append(checkpoint)
    return removed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

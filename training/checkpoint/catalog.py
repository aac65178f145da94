"""Which checkpoints there are, which are whole, and which may go.

A run has one or two folders of checkpoints: `permanent` in the run directory and, if configured, one on `fast` storage
for the frequent ones. What is newest is decided by the steps in the names, over both; never by a clock or a pointer.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.checkpoint.digest import MODULUS, digest
from training.checkpoint.manifest import MANIFEST_NAME, File, Manifest, Slice, read_manifest
from training.checkpoint.ranks import Ranks
from training.checkpoint.tensor_file import NUM_THREADS, TensorFileReader, TensorHeader
from training.errors import CorruptCheckpoint, StorageError

_COMMITTED = re.compile(r"step-(\d{8})")
_DAMAGED = ".damaged"
_FAST_NAME = "fast_storage"
"""File in the permanent folder that says where the fast one is, so that its loss is noticed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """Where a run's checkpoints lie."""

    permanent: Path
    """In the run directory: what is kept for good, and everything where there is no other folder."""
    fast: Path | None = None
    """On fast storage that every node sees: frequent checkpoints, soon removed."""

    def all(self) -> list[Path]:
        """Return the folders, the permanent one first."""
        return [self.permanent, *([self.fast] if self.fast else [])]

    def of(self, step: int, keep_steps: Iterable[int]) -> Path:
        """Return the folder that a step is saved to."""
        return self.permanent if self.fast is None or step in keep_steps else self.fast

    def open(self) -> None:
        """Make the fast folder and note in the run directory where it is; one rank calls it, before the first save.

        Raises:
            StorageError: it cannot be made.
        """
        if self.fast is None:
            return
        try:
            self.fast.mkdir(parents=True, exist_ok=True)
            self.permanent.mkdir(parents=True, exist_ok=True)
            (self.permanent / _FAST_NAME).write_text(f"{self.fast}\n")
        except OSError as error:
            raise StorageError(
                f"checkpoint.fast_root: {self.fast} cannot be made: {error}\n"
                "  -> mend that storage, or checkpoint.fast_root=null saves to the run directory"
            ) from error

    def check_fast_storage(self) -> None:
        """Check that the folder to which an earlier start saved is there still.

        Raises:
            CorruptCheckpoint: it is gone or another one is configured: newer checkpoints may lie there.
        """
        note = self.permanent / _FAST_NAME
        if not note.is_file():
            return
        noted = Path(note.read_text().strip())
        if not noted.is_dir() or (noted != self.fast and committed(noted)):
            raise CorruptCheckpoint(
                f"this run saved to {noted}, which {'is not there' if not noted.is_dir() else 'is not searched now'}: "
                f"its newest checkpoints may lie there\n  -> bring it back (checkpoint.fast_root={noted.parent}); "
                f"or remove {note} to go on from what {self.permanent} holds"
            )


def committed(*folders: Path) -> list[Path]:
    """Return the committed checkpoints of some folders, newest step first."""
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if _COMMITTED.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in a committed checkpoint's name."""
    match = _COMMITTED.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def remove_torsos(folders: Folders) -> None:
    """Remove what unfinished saves and removals left behind; only for the holder of a new lease, before it looks.

    That also fences: a process of an earlier start that wakes up and wants to commit finds its work directory gone.
    """
    for folder in folders.all():
        if folder.is_dir():
            for path in [*folder.glob("step-*.tmp"), *folder.glob("step-*.old")]:
                shutil.rmtree(path, ignore_errors=True)


def verify(checkpoint: Path, *, part: int = 0, num_parts: int = 1) -> Manifest:
    """Return the manifest after checking every file (or every num_parts-th, from `part`): size, hash and each slice.

    Raises:
        CorruptCheckpoint: naming the first file that is missing, not as written or not what the manifest says.
    """
    manifest = read_manifest(checkpoint)
    if checkpoint.name != f"step-{manifest.progress.step:08d}" and _COMMITTED.fullmatch(checkpoint.name):
        raise CorruptCheckpoint(f"{checkpoint / MANIFEST_NAME}: it is that of step {manifest.progress.step}")
    slices = _slices_by_file(manifest)
    # Hashing is what takes the time, and it lets other threads run.
    with ThreadPoolExecutor(max_workers=NUM_THREADS) as threads:
        problems = threads.map(
            lambda file: _problem(checkpoint, file, slices[file.name]), manifest.files[part::num_parts]
        )
        for problem in problems:
            if problem is not None:
                raise problem
    return manifest


def newest_whole(folders: Sequence[Path], ranks: Ranks) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole and a message per newer one that is not; collective.

    Rank 0 says what there is. Each rank hashes its share of the files, so the cost per rank does not grow with the
    number of ranks. A damaged checkpoint is renamed to `step-N.damaged`, so that the step can be committed again and
    nothing is lost for study.

    Raises:
        CorruptCheckpoint: on every rank: checkpoints exist, but none is whole.
    """
    rejected: list[str] = []
    there = [*committed(*folders), *_set_aside(*folders)] if ranks.rank == 0 else []
    names = [Path(name) for name in ranks.gather_text("\n".join(map(str, there)))[0].splitlines()]
    candidates = [name for name in names if name.suffix != _DAMAGED]
    for candidate in candidates:
        problem = ""
        try:
            verify(candidate, part=ranks.rank, num_parts=ranks.world_size)
        except CorruptCheckpoint as error:
            problem = str(error)
        if ranks.agree(not problem):
            # Not before a whole one is found: where none is, the next start has to see the same and say the same.
            if ranks.rank == 0:
                for damaged in candidates[: candidates.index(candidate)]:
                    _set_aside_now(damaged)
            ranks.agree(True)
            return candidate, rejected
        # Its first word on every rank, so that rank 0 can record it.
        rejected.append(next(filter(None, ranks.gather_text(problem))))
    if names:
        why = rejected or [f"{name} was found damaged by an earlier start" for name in names]
        raise CorruptCheckpoint(
            f"none of the {len(names)} checkpoints under {folders[0]} is whole: {'; '.join(why)}\n"
            "  -> restore one from a copy, or start a new run with resume=never (it will begin at step 0)"
        )
    return None, rejected


def _set_aside(*folders: Path) -> list[Path]:
    """Return what earlier starts found damaged."""
    return sorted(path for folder in folders for path in folder.glob(f"step-*{_DAMAGED}"))


def _set_aside_now(checkpoint: Path) -> None:
    aside = checkpoint.with_suffix(_DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)  # an earlier find at the same step
    os.rename(checkpoint, aside)


def prune(folders: Sequence[Path], *, keep_last: int, keep_steps: frozenset[int]) -> list[Path]:
    """Return the checkpoints it removed: all but the newest `keep_last` and those of `keep_steps`; one rank calls it.

    A checkpoint is first renamed out of the way, so that a kill leaves no half-deleted one that looks committed. What
    storage that went away kept an earlier call from deleting goes too: a run may have months until its next start.

    Raises:
        StorageError: one cannot be removed; it is whole, or out of the way.
    """
    assert keep_last >= 1, "the newest one is never removed"
    doomed = [path for path in committed(*folders)[keep_last:] if step_of(path) not in keep_steps]
    for half_removed in [path for folder in folders for path in folder.glob("step-*.old")]:
        _delete(half_removed)
    for checkpoint in doomed:
        _remove(checkpoint)
    return doomed


def remove_after(folders: Sequence[Path], step: int) -> list[Path]:
    """Return the checkpoints it removed: those of later steps, newest first; one rank calls it.

    So whatever is left if it is killed, the newest of it is one that the run has come by.

    Raises:
        StorageError: one cannot be removed; it is whole, or out of the way.
    """
    doomed = [path for path in committed(*folders) if step_of(path) > step]
    for checkpoint in doomed:
        _remove(checkpoint)
    return doomed


def set_aside_after(folders: Sequence[Path], step: int, suffix: str) -> Path | None:
    """Remove the checkpoints of later steps, but keep the newest one under another name, which is returned.

    No run goes on from it by itself; renamed back, it is a checkpoint as before. The newest one goes last: whoever is
    killed before finds it where it was, and may begin again.

    Args:
        folders: where checkpoints lie.
        step: those up to it stay.
        suffix: of the new name, such as ".rolled-back-1".

    Raises:
        StorageError: one cannot be renamed or removed.
    """
    later = [path for path in committed(*folders) if step_of(path) > step]
    if not later:
        return None
    for between in reversed(later[1:]):
        _remove(between)
    aside = later[0].with_suffix(suffix)
    try:
        os.rename(later[0], aside)
    except OSError as error:
        raise StorageError(f"{later[0]} cannot be renamed: {error}\n  -> rename it by hand to {aside.name}") from error
    return aside


def _remove(checkpoint: Path) -> None:
    out_of_the_way = checkpoint.with_suffix(".old")
    try:
        if out_of_the_way.exists():
            shutil.rmtree(out_of_the_way)
        os.rename(checkpoint, out_of_the_way)
    except OSError as error:
        raise StorageError(f"{checkpoint} cannot be removed: {error}\n  -> remove it by hand") from error
    _delete(out_of_the_way)


def _delete(out_of_the_way: Path) -> None:
    try:
        shutil.rmtree(out_of_the_way)
    except OSError as error:
        raise StorageError(f"{out_of_the_way} cannot be removed: {error}\n  -> remove it by hand") from error


def _slices_by_file(manifest: Manifest) -> dict[str, list[Slice]]:
    slices: dict[str, list[Slice]] = {file.name: [] for file in manifest.files}
    for piece in manifest.slices:
        slices[piece.file].append(piece)
    return slices


def _problem(checkpoint: Path, file: File, slices: list[Slice]) -> CorruptCheckpoint | None:
    """Return what is wrong with a file, None if nothing is."""
    path = checkpoint / file.name
    try:
        if path.is_symlink() or not path.is_file():
            raise CorruptCheckpoint(f"{path}: is missing, or no plain file")
        if path.stat().st_size != file.num_bytes:
            raise CorruptCheckpoint(f"{path}: {path.stat().st_size} bytes, {file.num_bytes} were written")
        _check_contents(path, file, slices)
    except CorruptCheckpoint as error:
        return error
    except OSError as error:
        return CorruptCheckpoint(f"{path}: {error}")
    return None


def _check_contents(path: Path, file: File, slices: list[Slice]) -> None:
    """Raise CorruptCheckpoint unless a file has its hash and holds exactly the slices that the manifest places in it.

    A load would find out about slices too, but only after it was decided which checkpoint is the newest whole one.
    """
    reader = TensorFileReader(path)
    try:
        held = {header.key: header for header in reader.tensors.values()}
        told = {s.key: TensorHeader(key=s.key, dtype="F32", shape=(s.numel,)) for s in slices}
        fits = held == told and len(told) == len(slices)
        starts = {piece.key: piece.start for piece in slices} if fits else {}
        digests = dict.fromkeys(starts, 0)
        sha256 = hashlib.sha256()
        for chunk in reader.chunks():
            sha256.update(chunk.data)
            if chunk.key in starts:
                bits = np.frombuffer(chunk.data, dtype=np.uint32)
                digests[chunk.key] += digest(bits, starts[chunk.key] + chunk.start)
        if sha256.hexdigest() != file.sha256:
            raise CorruptCheckpoint(f"{path}: contents changed since they were written (sha256 differs)")
        if not fits:
            raise CorruptCheckpoint(f"{path}: the manifest places other slices in it than it holds")
        for piece in slices:
            if digests[piece.key] % MODULUS != piece.digest:
                raise CorruptCheckpoint(f"{path}: {piece.key} is not what the manifest says (digest differs)")
    finally:
        reader.close()

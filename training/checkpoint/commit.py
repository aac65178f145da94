"""Write one checkpoint and commit it: everything is there, or nothing counts.

Every rank writes its file and a small index of it into `step-N.attempt-K.tmp` and syncs both; all ranks agree that they
succeeded; rank 0 merges the indexes into the manifest, syncs it, renames the directory to `step-N` and syncs the
parent. The rename is the commit. There is no `latest` file; a scan of the directory decides.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.checkpoint.digest import digest
from training.checkpoint.manifest import MANIFEST_NAME, File, Manifest, Progress, Slice
from training.checkpoint.ranks import Ranks, try_together
from training.checkpoint.snapshot import Snapshot
from training.checkpoint.tensor_file import TensorFileWriter, TensorHeader
from training.durable_files import fsync, write_durably
from training.errors import CorruptCheckpoint, RunInUse, SaveFailed, StorageError

POINTS = (
    "save_begun",
    "snapshot_taken",
    "file_written",
    "index_written",
    "before_commit",
    "manifest_written",
    "before_rename",
    "after_rename",
    "before_prune",
    "after_prune",
)
"""Moments of a save, in order, at which a drill may kill a rank."""
RANK_0_ONLY = frozenset(POINTS[5:])
"""Those that only rank 0 passes."""

_MANIFEST_BYTES_PER_RANK = 64 * 1024
"""Room for index and manifest in the check of free space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOrder:
    """What is saved, and where to."""

    directory: Path
    """Folder of checkpoints."""
    progress: Progress
    layout: str
    config: Mapping[str, Any]
    attempt: int
    """The lease's number."""
    check_lease: Callable[[], None]
    """Raises RunInUse if the run directory was taken over."""
    before_commit: Callable[[], None]
    """Brings to disk what must not be older than the checkpoint: the records of its steps."""
    at_point: Callable[[str, int], None]
    """Is told every point of the protocol with the step; drills kill there."""

    @property
    def final(self) -> Path:
        """The committed directory."""
        return self.directory / f"step-{self.progress.step:08d}"

    @property
    def work(self) -> Path:
        """The directory while it is written."""
        return self.final.with_suffix(f".attempt-{self.attempt}.tmp")

    def reach(self, point: str) -> None:
        """Say that a point of the protocol is reached."""
        assert point in POINTS, point
        self.at_point(point, self.progress.step)


def write_checkpoint(order: SaveOrder, snapshot: Snapshot, ranks: Ranks) -> Path:
    """Write and commit one checkpoint from the ranks' snapshots; collective. Returns the committed directory.

    Raises:
        SaveFailed: on every rank, if any rank could not write; what was committed before is untouched.
        RunInUse: on rank 0: the run directory was taken over by another start; nothing was committed.
    """
    order.reach("snapshot_taken")
    _together(order, ranks, lambda: _make_room(order, snapshot, ranks))
    _together(order, ranks, lambda: _write_part(order, snapshot, ranks.rank))
    order.reach("before_commit")
    _together(order, ranks, lambda: _commit(order, ranks.world_size) if ranks.rank == 0 else None)
    return order.final


def _together(order: SaveOrder, ranks: Ranks, act: Callable[[], None]) -> None:
    """Do one part of the protocol on every rank; all fail if one does, and rank 0 clears up."""
    failure, told = try_together(ranks, act)
    if not told:
        return
    if ranks.rank == 0:
        shutil.rmtree(order.work, ignore_errors=True)
    if isinstance(failure, RunInUse):
        raise failure
    more = f"; and {len(told) - 4} more ranks" if len(told) > 4 else ""
    raise SaveFailed(
        f"checkpoint of step {order.progress.step} could not be written to {order.directory}: "
        f"{'; '.join(told[:4])}{more}\n  -> free space or mend the storage; earlier checkpoints are whole"
    )


def _make_room(order: SaveOrder, snapshot: Snapshot, ranks: Ranks) -> None:
    """Let rank 0 make the work directory, if all of the checkpoint fits on the disk."""
    (needed_bytes,) = ranks.sum_integers([snapshot.owned_bytes + _MANIFEST_BYTES_PER_RANK])
    if ranks.rank > 0:
        return
    shutil.rmtree(order.work, ignore_errors=True)  # of a try that failed before, by this same start of the run
    order.work.mkdir(parents=True)
    # After the work directory was made, so that whoever takes over either is seen here or removes the directory.
    order.check_lease()
    disk = os.statvfs(order.directory)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < needed_bytes:
        raise StorageError(f"{order.directory} has {free_bytes:,} bytes free, the checkpoint takes {needed_bytes:,}")


def _write_part(order: SaveOrder, snapshot: Snapshot, rank: int) -> None:
    path = order.work / f"rank-{rank:05d}.safetensors"
    slices = list(_slices(snapshot, path.name))
    headers = [TensorHeader(key=piece.key, dtype="F32", shape=(piece.numel,)) for piece in slices]
    with TensorFileWriter(path, headers) as writer:
        writer.write(snapshot.owned_data())
    order.reach("file_written")
    rows = [[piece.tensor, piece.shape, piece.start, piece.numel, piece.digest] for piece in slices]
    write_durably(path.with_suffix(".json"), json.dumps({"file": asdict(writer.file), "slices": rows}))
    order.reach("index_written")


def _slices(snapshot: Snapshot, file: str) -> Iterator[Slice]:
    for piece in snapshot.owned:
        yield Slice(
            tensor=piece.tensor,
            shape=piece.shape,
            start=piece.start,
            numel=piece.numel,
            file=file,
            digest=digest(snapshot.values(piece).view(np.uint32), piece.start),
        )


def _commit(order: SaveOrder, world_size: int) -> None:
    slices: list[Slice] = []
    files: list[File] = []
    for rank in range(world_size):
        index = order.work / f"rank-{rank:05d}.json"
        try:
            content = json.loads(index.read_text())
        except ValueError as error:
            raise CorruptCheckpoint(f"{index}: {error}") from error
        file = File(**content["file"])
        files.append(file)
        for tensor, shape, start, numel, number in content["slices"]:
            slices.append(
                Slice(tensor=tensor, shape=tuple(shape), start=start, numel=numel, file=file.name, digest=number)
            )
    manifest = Manifest(
        progress=order.progress,
        layout=order.layout,
        config=order.config,
        attempt=order.attempt,
        slices=tuple(slices),
        files=tuple(files),
    )
    write_durably(order.work / MANIFEST_NAME, manifest.to_json())
    for rank in range(world_size):
        (order.work / f"rank-{rank:05d}.json").unlink()
    order.reach("manifest_written")
    order.before_commit()
    commit_directory(order.work, order.final, before_rename=lambda: (order.check_lease(), order.reach("before_rename")))
    order.reach("after_rename")


def commit_directory(work: Path, final: Path, *, before_rename: Callable[[], object] = lambda: None) -> None:
    """Make a finished work directory the committed one: from the moment of the rename, also after a power cut.

    Raises:
        OSError: it cannot be renamed; among other reasons because the step was committed before.
    """
    fsync(work)
    before_rename()
    os.rename(work, final)
    fsync(final.parent)

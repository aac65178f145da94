"""What a checkpoint holds and how far the run was when it was made. JSON, no torch."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from training.errors import CorruptCheckpoint
from training.plain_files import read_text, typed

FORMAT_VERSION = 3
_READABLE = (2, 3)
"""Version 2 knew no spikes: a run that goes on from it begins to watch its losses anew."""
MANIFEST_NAME = "manifest.json"
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of a parameter that AdamW updates."""
MOMENTUM = "momentum_buffer"
"""Of a parameter that Muon updates."""
MOST_DIMS = 16
"""Of a tensor; the product of many huge sizes would take for ever."""
_FILE_NAME = re.compile(r"rank-\d{5,}\.safetensors")
_HEX_DIGITS = frozenset("0123456789abcdef")
_SEAL = ',\n "sha256": "'
"""Before the hash of all that stands above it: a changed digit is valid JSON too."""
_LARGEST_BYTES = 2**30
"""Of a manifest; 15,000 ranks of a 500B model write about 100 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Batches of a training stage that are not trained on: the run went back to before them after a loss spike."""

    training_stage: str
    first_batch: int
    """Place in the training stage's order of global batches, from 0."""
    num_batches: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is: everything besides tensors that is needed to go on exactly.

    There is no random state and no loss scale: initial weights, sample order, dropout masks and every schedule are pure
    functions of what stands here and in the config, and precision is bf16 or fp32.
    """

    step: int
    """Global optimizer steps done, over all training stages."""
    training_stage: str
    """Training stage the step belongs to."""
    stage_step: int
    """Optimizer steps done in this training stage."""
    samples: int
    """Samples drawn or left out since the start of this training stage: the next one's place in its sample order."""
    tokens: int
    """Tokens trained on since the start of the run."""
    optimizer_updates: int
    """Updates the optimizer really made (steps less skipped ones): AdamW's bias correction counts these."""
    skips_in_a_row: int
    """Steps up to this one without a break that were not used: gradients not finite, or a loss spike held back."""
    lr: float
    """Learning rate of the step, to be compared with the schedule on resume."""
    config_hash: str
    """Hash of the parts of the config that determine the numbers."""
    data_fingerprint: str
    """Fingerprint of the prepared data and its tokenizer."""
    losses: tuple[float, ...] = ()
    """Of the training stage's last used steps, oldest first: what the next loss is compared with."""
    grad_norms: tuple[float, ...] = ()
    """Of the same steps."""
    spikes_in_a_row: int = 0
    """Steps up to this one without a break whose loss was a spike."""
    left_out: tuple[LeftOut, ...] = ()
    """One entry for each time the run went back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A flat range of one tensor, stored as one 1-D float32 tensor in one file."""

    tensor: str
    """"<kind>/<canonical parameter name>", kind being weight, exp_avg, exp_avg_sq or momentum_buffer."""
    shape: tuple[int, ...]
    """Global shape of the tensor."""
    start: int
    """First element of the range in the flattened tensor."""
    numel: int
    """Elements of the range."""
    file: str
    """File name in the checkpoint's directory."""
    digest: int
    """Of the range (training/checkpoint/digest.py); those of a tensor's slices add up to the tensor's."""

    @property
    def key(self) -> str:
        """Key in the safetensors file."""
        return f"{self.tensor}@{self.start}"


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of one checkpoint.

    Raises:
        CorruptCheckpoint: the slices do not cover every tensor exactly once, or a name could not be ours.
    """

    progress: Progress
    layout: str
    """Description of the layout that wrote it; information only, any other may load it."""
    config: Mapping[str, Any]
    """The part of the run's config that determines numbers, as plain values."""
    attempt: int
    """Fencing number of the start of the run that wrote it (training/lease.py)."""
    slices: tuple[Slice, ...]
    files: tuple[File, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Where it came from, for people."""

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        for name in names:
            if not _FILE_NAME.fullmatch(name):  # a path could lead anywhere
                raise CorruptCheckpoint(f"{name!r} is not the name of a checkpoint's file")
        if len(set(names)) != len(names):
            raise CorruptCheckpoint("a file is listed twice")
        if strange := {piece.file for piece in self.slices}.difference(names):
            raise CorruptCheckpoint(f"slices lie in files that are not listed: {sorted(strange)[:3]}")
        _check_coverage(self.slices)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensor files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def has_moments(self) -> bool:
        """Whether it holds optimizer state; imported weights have none."""
        return any(piece.tensor.startswith(f"{MOMENTS[0]}/") for piece in self.slices)

    def tensors(self) -> dict[str, list[Slice]]:
        """Return the slices of each tensor in the order of their ranges."""
        by_tensor: dict[str, list[Slice]] = defaultdict(list)
        for piece in sorted(self.slices, key=lambda piece: (piece.tensor, piece.start)):
            by_tensor[piece.tensor].append(piece)
        return dict(by_tensor)

    def to_json(self) -> str:
        """Return the text of manifest.json. Slices are rows of numbers: a large run has millions."""
        tensors = {piece.tensor: piece.shape for piece in self.slices}
        numbers = {name: number for number, name in enumerate(tensors)}
        files = {file.name: number for number, file in enumerate(self.files)}
        rows = [[numbers[s.tensor], files[s.file], s.start, s.numel, f"{s.digest:016x}"] for s in self.slices]
        head = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(self.progress),
            "layout": self.layout,
            "attempt": self.attempt,
            "notes": dict(self.notes),
            "config": self.config,
            "files": [asdict(file) for file in self.files],
            "tensors": [{"name": name, "shape": shape} for name, shape in tensors.items()],
        }
        # Indented for people, but one line for each slice.
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        text = f'{json.dumps(head, indent=1)[:-2]},\n "slices": [\n{lines}\n ]'
        return f'{text}{_SEAL}{_sha256(text)}"\n}}\n'


def read_manifest(checkpoint: Path) -> Manifest:
    """Return the manifest of a checkpoint directory, checked for whole coverage of every tensor.

    Raises:
        CorruptCheckpoint: it is missing, torn, of another format version, or its slices do not add up.
    """
    path = checkpoint / MANIFEST_NAME
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        return from_json(read_text(path, largest_bytes=_LARGEST_BYTES))
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: not a readable manifest ({type(error).__name__}: {error})") from error


def from_json(text: str) -> Manifest:
    """Return the manifest that `to_json` wrote; raises one of many errors if the text is something else."""
    body, _, seal = text.rpartition(_SEAL)
    if seal != f'{_sha256(body)}"\n}}\n':
        raise ValueError("it is torn, or was changed after it was written (sha256 differs)")
    fields: dict[str, Any] = json.loads(text)
    if fields["format_version"] not in _READABLE:
        raise CorruptCheckpoint(f"format version {fields['format_version']}, this program reads {_READABLE}")
    files = tuple(typed(File, file) for file in fields["files"])
    tensors = [(str(tensor["name"]), _shape(tensor["shape"])) for tensor in fields["tensors"]]
    slices = tuple(
        Slice(
            tensor=tensors[_count(tensor)][0],
            shape=tensors[tensor][1],
            file=files[_count(file)].name,
            start=_count(start),
            numel=_count(numel),
            digest=_hex(digest),
        )
        for tensor, file, start, numel, digest in fields["slices"]
    )
    rest = {name: fields[name] for name in ("layout", "attempt", "notes", "config")}
    progress = _progress(fields["progress"])
    return typed(Manifest, {**rest, "progress": progress, "slices": slices, "files": files})


def _progress(fields: Mapping[str, Any]) -> Progress:
    """Return the progress; JSON has lists where it has tuples."""
    rows = {name: tuple(fields[name]) for name in ("losses", "grad_norms") if name in fields}
    left_out = tuple(typed(LeftOut, window) for window in fields.get("left_out", ()))
    progress = typed(Progress, {**fields, **rows, "left_out": left_out})
    if not all(map(math.isfinite, (*progress.losses, *progress.grad_norms))):
        raise ValueError("a loss among those that say what is usual is not finite")
    return progress


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _count(number: object) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63:
        return number
    raise ValueError(f"{number!r} where a number from 0 on belongs")


def _shape(sizes: object) -> tuple[int, ...]:
    if isinstance(sizes, list) and len(sizes) <= MOST_DIMS:
        return tuple(map(_count, sizes))
    raise ValueError("a tensor without a shape, or with one of too many dims")


def _hex(text: str) -> int:
    if len(text) != 16 or not _HEX_DIGITS.issuperset(text):
        raise ValueError(f"{text!r} where 16 hexadecimal digits belong")
    return int(text, 16)


def _check_coverage(slices: Iterable[Slice]) -> None:
    """Raise CorruptCheckpoint unless the ranges of every tensor cover it exactly once."""
    reached: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in sorted(slices, key=lambda piece: (piece.tensor, piece.start)):
        expected = reached.get(piece.tensor, 0)
        if piece.start != expected or shapes.setdefault(piece.tensor, piece.shape) != piece.shape:
            problem = "written twice" if piece.start < expected else "missing"
            raise CorruptCheckpoint(
                f"{piece.tensor}: elements {min(piece.start, expected)}..{max(piece.start, expected)} are {problem}"
            )
        reached[piece.tensor] = piece.start + piece.numel
    for tensor, end in reached.items():
        if end != prod(shapes[tensor]):
            raise CorruptCheckpoint(f"{tensor}: {end} of {prod(shapes[tensor])} elements were written")

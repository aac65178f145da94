"""What a checkpoint holds and how far the run was when it was made. JSON, no torch."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from training.errors import CorruptCheckpoint

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run is: everything besides tensors that is needed to go on exactly.

    There is no random state: initial weights, sample order and every schedule are pure functions of what stands here
    and in the config.
    """

    step: int
    """Global optimizer steps done, over all training stages."""
    training_stage: str
    """Training stage the step belongs to."""
    stage_step: int
    """Optimizer steps done in this training stage."""
    tokens: int
    """Tokens trained on since the start of the run."""
    optimizer_updates: int
    """Updates the optimizer really made (steps less skipped ones): AdamW's bias correction counts these."""
    config_hash: str
    """Hash of the parts of the config that determine the numbers."""
    data_fingerprint: str
    """Fingerprint of the prepared data and its tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """A flat range of one tensor, stored as one 1-D tensor in one file."""

    tensor: str
    """"<kind>/<canonical parameter name>", kind being weight, exp_avg or exp_avg_sq."""
    shape: tuple[int, ...]
    """Global shape of the tensor."""
    start: int
    """First element of the range in the flattened tensor."""
    numel: int
    """Elements of the range."""
    file: str
    """File name in the checkpoint's directory."""
    key: str
    """Key in the safetensors file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The contents of one checkpoint."""

    progress: Progress
    layout: str
    """Description of the layout that wrote it; information only, any other may load it."""
    slices: tuple[Slice, ...]
    files: tuple[File, ...]

    def __post_init__(self) -> None:
        _check_coverage(self.slices)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensor files."""
        return sum(file.num_bytes for file in self.files)

    def tensors(self) -> dict[str, list[Slice]]:
        """Return the slices of each tensor in the order of their ranges."""
        by_tensor: dict[str, list[Slice]] = defaultdict(list)
        for piece in sorted(self.slices, key=lambda piece: (piece.tensor, piece.start)):
            by_tensor[piece.tensor].append(piece)
        return dict(by_tensor)

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)


def read_manifest(checkpoint: Path) -> Manifest:
    """Return the manifest of a checkpoint directory, checked for whole coverage of every tensor.

    Raises:
        CorruptCheckpoint: it is missing, torn, of another format version, or its slices do not add up.
    """
    path = checkpoint / MANIFEST_NAME
    try:
        text: dict[str, Any] = json.loads(path.read_text())
        if text["format_version"] != FORMAT_VERSION:
            raise CorruptCheckpoint(
                f"{path}: format version {text['format_version']}, this program reads {FORMAT_VERSION}"
            )
        return Manifest(
            progress=Progress(**text["progress"]),
            layout=text["layout"],
            slices=tuple(Slice(**{**piece, "shape": tuple(piece["shape"])}) for piece in text["slices"]),
            files=tuple(File(**file) for file in text["files"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{path}: not a readable manifest ({type(error).__name__}: {error})") from error


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

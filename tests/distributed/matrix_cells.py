"""The cells of the equivalence matrix: every combination of layout, schedule, engine, accumulation and recompute."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations, product

from tests.distributed.configs import GLOBAL_BATCH

NUM_BLOCKS = 8
"""Enough for 4 pipeline stages of 2 chunks."""
NUM_LAYOUT_AXES = 7
"""The first axes of a cell: pipeline, data, sequence, expert, ZeRO stage, schedule, engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One way to train the same model on the same global batches."""

    pipeline: int
    data: int
    sequence: int
    expert: int
    zero_stage: int
    schedule: str
    engine: str
    """ours or deepspeed (its PipelineEngine)."""
    accumulation: int
    recompute: str
    model: str
    """dense, tied (embeddings) or experts."""
    optimizer: str

    @property
    def world_size(self) -> int:
        """Processes it takes."""
        return self.pipeline * self.data * self.sequence

    @property
    def micro_batch(self) -> int:
        """Sequences per micro-batch, such that every cell has the same global batch."""
        return GLOBAL_BATCH // (self.data * self.accumulation)

    @property
    def name(self) -> str:
        """A readable id."""
        axes = f"p{self.pipeline}-d{self.data}-s{self.sequence}-e{self.expert}-z{self.zero_stage}"
        return (
            f"{axes}-{self.schedule}-{self.engine}-a{self.accumulation}-{self.recompute}-{self.optimizer}-{self.model}"
        )

    def is_possible(self) -> bool:
        """Return whether there is such a thing: 4 processes at most, and what each engine can do."""
        if self.world_size > 4 or (self.data * self.sequence) % self.expert:
            return False
        if self.expert > 1 and self.model != "experts":
            return False
        if self.engine == "deepspeed" and self.sequence * self.expert > 1:
            return False
        if self.pipeline == 1:
            return self.engine == "ours" and self.schedule == "1f1b"
        if self.engine == "deepspeed":
            return self.zero_stage == 1 and self.schedule == "1f1b"
        return True


AXES: dict[str, Sequence[object]] = {
    "pipeline": (1, 2, 4),
    "data": (1, 2),
    "sequence": (1, 2),
    "expert": (1, 2),
    "zero_stage": (1, 2, 3),
    "schedule": ("1f1b", "interleaved"),
    "engine": ("ours", "deepspeed"),
    "accumulation": (1, 4),
    "recompute": ("none", "full"),
    "model": ("dense", "tied", "experts"),
    "optimizer": ("sgd", "adamw"),
}


def all_cells() -> list[Cell]:
    """Return every possible cell, in a fixed order."""
    assert list(AXES) == [field.name for field in fields(Cell)]
    cells = [Cell(**dict(zip(AXES, values, strict=True))) for values in product(*AXES.values())]  # type: ignore[arg-type]
    return [cell for cell in cells if cell.is_possible()]


def shown_by(cell: Cell) -> set[tuple[object, ...]]:
    """Return what a cell shows: its layout, and each pair of values of any two axes."""
    values = astuple(cell)
    pairs: set[tuple[object, ...]] = {
        (one, values[one], other, values[other]) for one, other in combinations(range(len(values)), 2)
    }
    return pairs | {values[:NUM_LAYOUT_AXES]}


def covering_cells() -> list[Cell]:
    """Return few cells that show every layout and every possible pair: greedily the one that shows most new."""
    cells = all_cells()
    missing = set().union(*map(shown_by, cells))
    chosen: list[Cell] = []
    while missing:
        best = max(cells, key=lambda cell: len(shown_by(cell) & missing))
        chosen.append(best)
        missing -= shown_by(best)
    return chosen

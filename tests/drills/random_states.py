"""Model states of random shapes, cut at random places over a random number of simulated ranks."""

import random
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tests.unit.checkpoint.simulated_ranks import KINDS, SimulatedRanks, on_ranks, order
from training.checkpoint.commit import write_checkpoint
from training.checkpoint.snapshot import Fragment, Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A model's weights and moments, whole."""

    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, dict[str, Tensor]]
    """parameter -> kind -> flattened values."""


def draw_shapes(draw: random.Random) -> dict[str, tuple[int, ...]]:
    """Return one to six parameters of up to a few hundred elements."""
    return {
        f"layers.{index}.weight": tuple(draw.randint(1, 9) for _ in range(draw.randint(1, 3)))
        for index in range(draw.randint(1, 6))
    }


def draw_state(shapes: dict[str, tuple[int, ...]], draw: random.Random) -> State:
    """Return values for the shapes, other ones at every call."""
    generator = torch.Generator().manual_seed(draw.getrandbits(62))
    tensors = {
        name: {kind: torch.randn(prod(shape), generator=generator) for kind in KINDS} for name, shape in shapes.items()
    }
    return State(shapes=shapes, tensors=tensors)


def cut(state: State, num_ranks: int, draw: random.Random, *, empty: bool = False) -> list[list[Fragment]]:
    """Return each rank's fragments of a state: ranges of random length, now and then with a replica beside them.

    Args:
        state: the whole.
        num_ranks: how many ranks share it.
        draw: where the cuts are drawn from.
        empty: give zeros in the place of the values, to be loaded into.
    """
    ranks: list[list[Fragment]] = [[] for _ in range(num_ranks)]
    for name, shape in state.shapes.items():
        numel = prod(shape)
        places = sorted(draw.randint(0, numel) for _ in range(num_ranks - 1))
        for start, stop in zip([0, *places], [*places, numel], strict=True):
            if start == stop:
                continue
            owner, replica = draw.randrange(num_ranks), draw.randrange(4 * num_ranks)
            for rank in {owner, replica} & set(range(num_ranks)):
                values = {kind: whole[start:stop].clone() for kind, whole in state.tensors[name].items()}
                if empty:
                    values = {kind: torch.zeros_like(value) for kind, value in values.items()}
                ranks[rank].append(
                    Fragment(parameter=name, shape=shape, start=start, tensors=values, is_owner=rank == owner)
                )
    return ranks


def commit(folder: Path, step: int, state: State, num_ranks: int, draw: random.Random) -> Path:
    """Save a state as the real protocol does, from a random cut; returns the committed directory."""
    fragments = cut(state, num_ranks, draw)

    def save(ranks: SimulatedRanks) -> Path:
        snapshot = Snapshot(fragments[ranks.rank])
        snapshot.take()
        return write_checkpoint(order(folder, step=step, num_ranks=num_ranks), snapshot, ranks)

    paths = on_ranks(num_ranks, save)
    assert set(paths) == {folder / f"step-{step:08d}"}, paths
    return paths[0]


def holds(fragments: list[list[Fragment]], state: State) -> bool:
    """Return whether the ranks' live tensors are bitwise those of a state."""
    return all(
        torch.equal(
            fragment.tensors[kind].view(torch.int32),
            state.tensors[fragment.parameter][kind][fragment.start :][: len(fragment.tensors[kind])].view(torch.int32),
        )
        for of_rank in fragments
        for fragment in of_rank
        for kind in KINDS
    )


def is_untouched(fragments: list[list[Fragment]]) -> bool:
    """Return whether every live tensor is still zero."""
    return not any(values.any() for of_rank in fragments for f in of_rank for values in f.tensors.values())

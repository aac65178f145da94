"""However the tensors were cut among those who wrote them, whoever reads any ranges gets what was there, bit by bit."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.checkpoint.simulated_ranks import KINDS, SimulatedRanks, on_ranks, order
from training.checkpoint.catalog import verify
from training.checkpoint.commit import write_checkpoint
from training.checkpoint.digest import digest
from training.checkpoint.load import CheckpointReader, Loaded, load_checkpoint, load_weights
from training.checkpoint.snapshot import Fragment, Snapshot

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Held:
    """A range of one parameter at one rank."""

    parameter: str
    start: int
    stop: int
    is_owner: bool


Cut = list[list[Held]]
"""What every rank holds."""

SHAPES = st.dictionaries(
    st.sampled_from(["embedding.weight", "block.0.weight", "block.1.weight", "norm.weight", "scale"]),
    st.lists(st.integers(1, 6), max_size=3).map(tuple),
    min_size=1,
)


@st.composite
def cuts(draw: st.DrawFn, shapes: Shapes) -> Cut:
    """Any number of ranks; every parameter cut anywhere, every part owned by any of them, and any replicas besides."""
    ranks: Cut = [[] for _ in range(draw(st.integers(1, 4)))]
    someone = st.sampled_from(ranks)
    for name, shape in shapes.items():
        numel = prod(shape)
        ends = sorted(draw(st.sets(st.integers(1, numel), max_size=4)) | {numel})
        for start, stop in zip([0, *ends], ends, strict=False):
            draw(someone).append(Held(name, start, stop, is_owner=True))
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, numel - 1))
            draw(someone).append(Held(name, start, draw(st.integers(start + 1, numel)), is_owner=False))
    return [draw(st.permutations(held)) for held in ranks]


def random_bits(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Any float32 at all, NaNs with payloads among them, by the tensor's name in the manifest."""
    random = np.random.default_rng(seed)
    return {
        f"{kind}/{name}": torch.from_numpy(random.integers(0, 2**32, prod(shape), dtype=np.uint32).view(np.float32))
        for name, shape in shapes.items()
        for kind in KINDS
    }


def written_by(held: list[Held], shapes: Shapes, values: Mapping[str, Tensor]) -> Snapshot:
    """What a rank saves; a replica holds something else, so that whoever writes it is found out."""
    fragments = [
        Fragment(
            parameter=part.parameter,
            shape=shapes[part.parameter],
            start=part.start,
            tensors={
                kind: values[f"{kind}/{part.parameter}"][part.start : part.stop].clone()
                if part.is_owner
                else torch.full((part.stop - part.start,), 7.0)
                for kind in KINDS
            },
            is_owner=part.is_owner,
        )
        for part in held
    ]
    snapshot = Snapshot(fragments)
    snapshot.take()
    return snapshot


def empty(held: list[Held], shapes: Shapes) -> list[Fragment]:
    """What a rank is about to load into."""
    return [
        Fragment(
            parameter=part.parameter,
            shape=shapes[part.parameter],
            start=part.start,
            tensors={kind: torch.full((part.stop - part.start,), 5.0) for kind in KINDS},
            is_owner=part.is_owner,
        )
        for part in held
    ]


def bits(values: Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


@contextmanager
def committed(cut: Cut, shapes: Shapes, values: Mapping[str, Tensor]) -> Iterator[Path]:
    """A checkpoint that ranks with this cut wrote together."""
    folder = Path(tempfile.mkdtemp())

    def save_mine(ranks: SimulatedRanks) -> Path:
        snapshot = written_by(cut[ranks.rank], shapes, values)
        return write_checkpoint(order(folder, step=1, num_ranks=len(cut)), snapshot, ranks)

    try:
        paths = on_ranks(len(cut), save_mine)
        assert paths == [folder / "step-00000001"] * len(cut)
        yield paths[0]
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_any_readers_get_what_any_writers_had(data: st.DataObject) -> None:
    shapes = data.draw(SHAPES)
    values = random_bits(shapes, data.draw(st.integers(0, 2**32)))
    writers, readers = data.draw(cuts(shapes), "writers"), data.draw(cuts(shapes), "readers")
    event(f"a writer without anything to write: {any(not any(p.is_owner for p in held) for held in writers)}")
    with committed(writers, shapes, values) as checkpoint:
        manifest = verify(checkpoint)
        reader = CheckpointReader(checkpoint)
        assert reader.shapes == shapes
        assert reader.digests() == {name: digest(whole.numpy().view(np.uint32), 0) for name, whole in values.items()}
        assert sum(piece.numel for piece in manifest.slices) == sum(whole.numel() for whole in values.values())
        live = [empty(held, shapes) for held in readers]
        loaded = on_ranks(len(readers), lambda ranks: load_checkpoint(checkpoint, Snapshot(live[ranks.rank]), ranks))
    for fragments, result in zip(live, loaded, strict=True):
        assert isinstance(result, Loaded), result
        assert result.bytes_read == 4 * sum(len(held) for f in fragments for held in f.tensors.values())
        for fragment in fragments:
            for kind, held in fragment.tensors.items():
                whole = values[f"{kind}/{fragment.parameter}"]
                assert bits(held) == bits(whole[fragment.start : fragment.start + len(held)])


@settings(max_examples=20)
@given(data=st.data())
def test_weights_alone_come_from_any_writers_too(data: st.DataObject) -> None:
    shapes = data.draw(SHAPES)
    values = random_bits(shapes, data.draw(st.integers(0, 2**32)))
    writers, readers = data.draw(cuts(shapes), "writers"), data.draw(cuts(shapes), "readers")
    live = [empty(held, shapes) for held in readers]
    with committed(writers, shapes, values) as checkpoint:

        def load(ranks: SimulatedRanks) -> None:
            load_weights(lambda: CheckpointReader(checkpoint), Snapshot(live[ranks.rank]), ranks)

        assert on_ranks(len(readers), load) == [None] * len(readers)
    for fragment in (fragment for fragments in live for fragment in fragments):
        stop = fragment.start + len(fragment.tensors["weight"])
        assert bits(fragment.tensors["weight"]) == bits(values[f"weight/{fragment.parameter}"][fragment.start : stop])
        assert not any(fragment.tensors[kind].any() for kind in KINDS if kind != "weight")

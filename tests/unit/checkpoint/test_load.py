from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.simulated_ranks import (
    ALONE,
    KINDS,
    SHAPES,
    SimulatedRanks,
    fragments_of,
    on_ranks,
    progress_at,
    saved,
)
from training.checkpoint.catalog import verify
from training.checkpoint.load import CheckpointReader, Loaded, load_checkpoint, load_weights
from training.checkpoint.manifest import Progress
from training.checkpoint.snapshot import Fragment, Snapshot
from training.checkpoint.tensor_file import TensorFileReader
from training.errors import CorruptCheckpoint


def whole_tensors(seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{fragment.parameter}": values
        for fragment in fragments_of(0, 1, seed)
        for kind, values in fragment.tensors.items()
    }


@pytest.mark.parametrize("num_writers", [1, 2, 5])
@pytest.mark.parametrize("num_readers", [1, 3, 4])
def test_what_any_number_of_ranks_wrote_any_other_number_reads(
    num_writers: int, num_readers: int, tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path, step=8, num_ranks=num_writers, seed=3)

    def load(ranks: SimulatedRanks) -> Progress:
        fragments = fragments_of(ranks.rank, num_readers, None)
        loaded = load_checkpoint(checkpoint, Snapshot(fragments), ranks)
        for fragment, expected in zip(fragments, fragments_of(ranks.rank, num_readers, 3), strict=True):
            assert all(torch.equal(fragment.tensors[kind], expected.tensors[kind]) for kind in KINDS)
        assert loaded.bytes_read == 4 * sum(len(f.tensors[kind]) for f in fragments for kind in KINDS)
        return loaded.progress

    assert on_ranks(num_readers, load) == [progress_at(8)] * num_readers


def test_state_of_another_optimizer_is_refused_before_anything_changes(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, seed=3)
    fragments = fragments_of(0, 1, 4)
    fragments[0].tensors["momentum_buffer"] = fragments[0].tensors.pop("exp_avg")
    before = {kind: values.clone() for kind, values in fragments[0].tensors.items()}
    with pytest.raises(CorruptCheckpoint, match=r"holds no momentum_buffer/.*did another optimizer write it"):
        load_checkpoint(checkpoint, Snapshot(fragments), ALONE)
    assert all(torch.equal(values, before[kind]) for kind, values in fragments[0].tensors.items())


def test_the_files_of_many_ranks_are_opened_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved(tmp_path, num_ranks=24, seed=3)
    opened: list[Path] = []

    class CountedReader(TensorFileReader):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr("training.checkpoint.load.TensorFileReader", CountedReader)
    fragments = fragments_of(0, 1, None)
    load_checkpoint(checkpoint, Snapshot(fragments), ALONE)
    for fragment, expected in zip(fragments, fragments_of(0, 1, 3), strict=True):
        assert all(torch.equal(fragment.tensors[kind], expected.tensors[kind]) for kind in KINDS)
    assert len(opened) == len(set(opened)) > 16


@given(data=st.data())
def test_any_range_of_any_tensor_can_be_read_and_nothing_else_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = tmp_path_factory.getbasetemp() / "ranges" / "step-00000001"
    if not checkpoint.exists():
        saved(checkpoint.parent, num_ranks=3)
    name, values = data.draw(st.sampled_from(list(whole_tensors(1).items())))
    start = data.draw(st.integers(0, len(values) - 1))
    numel = data.draw(st.integers(1, len(values) - start))
    reader = CheckpointReader(checkpoint)
    assert np.array_equal(reader.read(name, start, numel), values[start : start + numel].numpy())
    assert reader.bytes_read == 4 * numel
    reader.close()


def strange(shape: tuple[int, ...], name: str = "other.weight") -> Fragment:
    numel = int(np.prod(shape))
    tensors = {kind: torch.zeros(numel) for kind in KINDS}
    return Fragment(parameter=name, shape=shape, start=0, tensors=tensors, is_owner=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ours: [*ours, strange((2,))], r"holds no other\.weight"),
        (
            lambda ours: [*ours[:-1], strange((8,), "norm.weight")],
            r"norm\.weight has shape \(6,\), the model's is \(8,\)",
        ),
        (lambda ours: ours[:-1], r"holds \w+/norm\.weight, which the model does not have"),
        (lambda ours: [*ours[:-1], short(ours[-1])], r"5 of 6 elements of \w+/norm\.weight have a place"),
        (lambda ours: [*ours[:-1], shifted(ours[-1])], r"elements of \w+/norm\.weight have two places, some have none"),
    ],
    ids=["missing", "another shape", "extra", "too short", "shifted"],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing_and_is_named(change, words: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    fragments = change(fragments_of(0, 1, None))
    with pytest.raises(CorruptCheckpoint, match=words):
        load_checkpoint(checkpoint, Snapshot(fragments), ALONE)
    assert all(not values.any() for fragment in fragments for values in fragment.tensors.values())


def short(fragment: Fragment) -> Fragment:
    tensors = {kind: values[:-1] for kind, values in fragment.tensors.items()}
    return Fragment(parameter=fragment.parameter, shape=fragment.shape, start=0, tensors=tensors, is_owner=True)


def shifted(fragment: Fragment) -> Fragment:
    """All elements and one beyond, from the second place on: what a layout that counts wrong would ask for."""
    tensors = {kind: torch.zeros(6) for kind in KINDS}
    return Fragment(parameter=fragment.parameter, shape=fragment.shape, start=1, tensors=tensors, is_owner=True)


def test_a_rank_that_fails_keeps_the_others_from_loading(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    loaded: list[list[Fragment]] = [[], []]

    def load(ranks: SimulatedRanks) -> Loaded:
        loaded[ranks.rank] = fragments_of(ranks.rank, 2, None) + ([strange((2,))] if ranks.rank else [])
        return load_checkpoint(checkpoint, Snapshot(loaded[ranks.rank]), ranks)

    errors = on_ranks(2, load)
    assert [type(error) for error in errors] == [CorruptCheckpoint, CorruptCheckpoint]
    assert "(rank 1)" in str(errors[0])
    assert "other.weight" in str(errors[0])
    assert all(not v.any() for fragments in loaded for f in fragments for v in f.tensors.values())


def test_what_changed_after_it_was_found_whole_is_refused_on_every_rank(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    verify(checkpoint)
    file = max(checkpoint.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    errors = on_ranks(2, lambda ranks: load_checkpoint(checkpoint, Snapshot(fragments_of(ranks.rank, 2, None)), ranks))
    assert [type(error) for error in errors] == [CorruptCheckpoint, CorruptCheckpoint]
    assert "is not what was saved" in str(errors[0])


def test_weights_alone_leave_no_optimizer_state(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, num_ranks=3, seed=5)
    fragments = fragments_of(0, 1, 9)
    load_weights(lambda: CheckpointReader(checkpoint), Snapshot(fragments), ALONE)
    for fragment, expected in zip(fragments, fragments_of(0, 1, 5), strict=True):
        assert torch.equal(fragment.tensors["weight"], expected.tensors["weight"])
        assert not fragment.tensors["exp_avg"].any()
        assert not fragment.tensors["exp_avg_sq"].any()


def test_every_parameter_of_these_tests_is_cut_somewhere() -> None:
    sizes = [len(fragment.tensors["weight"]) for fragment in fragments_of(0, 2, 1)]
    assert len(SHAPES) == len(sizes)
    assert all(0 < size < len(whole_tensors(1)[f"weight/{name}"]) for size, name in zip(sizes, SHAPES, strict=True))

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checkpoint.simulated_ranks import progress_at
from training.checkpoint.manifest import File, LeftOut, Manifest, Slice, read_manifest
from training.errors import CorruptCheckpoint

FILE = "rank-00000.safetensors"


def piece(start: int, numel: int, *, tensor: str = "weight/w", shape: tuple[int, ...] = (4, 5)) -> Slice:
    return Slice(tensor=tensor, shape=shape, start=start, numel=numel, file=FILE, digest=start)


def manifest(*slices: Slice) -> Manifest:
    return Manifest(
        progress=progress_at(3),
        layout="any",
        config={"model": {"rope_theta": 1e4}},
        attempt=2,
        slices=slices,
        files=(File(name=FILE, num_bytes=1, sha256="0"),),
    )


@given(cuts=st.sets(st.integers(1, 19)), order=st.randoms())
def test_slices_that_cover_a_tensor_once_are_accepted_in_any_order(cuts: set[int], order) -> None:
    edges = [0, *sorted(cuts), 20]
    slices = [piece(start, stop - start) for start, stop in pairwise(edges)]
    order.shuffle(slices)
    assert [s.start for s in manifest(*slices).tensors()["weight/w"]] == edges[:-1]


@given(
    cuts=st.sets(st.integers(1, 19), min_size=1),
    index=st.integers(0, 18),
    change=st.sampled_from(["drop", "repeat", "shorten", "lengthen"]),
)
def test_a_hole_or_an_overlap_anywhere_is_refused(cuts: set[int], index: int, change: str) -> None:
    edges = [0, *sorted(cuts), 20]
    slices = [piece(start, stop - start) for start, stop in pairwise(edges)]
    spoiled = slices.pop(index % len(slices))
    difference = {"shorten": -1, "lengthen": 1}.get(change, 0)
    replacements = {"drop": [], "repeat": [spoiled, spoiled]}
    slices += replacements.get(change, [piece(spoiled.start, spoiled.numel + difference)])
    with pytest.raises(CorruptCheckpoint, match=r"weight/w: .*(missing|written twice|elements were written)"):
        manifest(*slices)


def test_slices_that_disagree_about_the_shape_are_refused() -> None:
    with pytest.raises(CorruptCheckpoint, match="weight/w"):
        manifest(piece(0, 10), piece(10, 10, shape=(5, 4)))


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = manifest(piece(0, 12), piece(12, 8), piece(0, 3, tensor="exp_avg/v", shape=(3,)))
    (tmp_path / "manifest.json").write_text(written.to_json())
    assert read_manifest(tmp_path) == written


def test_what_is_left_out_and_what_is_usual_read_back_bit_by_bit(tmp_path: Path) -> None:
    progress = replace(
        progress_at(3),
        losses=(2.1, 0.1 + 0.2, 5e-324),
        grad_norms=(1.0, 1e300, 1 / 3),
        spikes_in_a_row=2,
        left_out=(LeftOut(training_stage="only", first_batch=4, num_batches=2),),
    )
    written = replace(manifest(piece(0, 20)), progress=progress)
    (tmp_path / "manifest.json").write_text(written.to_json())
    assert read_manifest(tmp_path) == written


def test_a_manifest_of_version_2_is_read_as_one_that_has_seen_no_spike(tmp_path: Path) -> None:
    fields = json.loads(manifest(piece(0, 20)).to_json())
    for name in ("losses", "grad_norms", "spikes_in_a_row", "left_out"):
        del fields["progress"][name]
    del fields["sha256"]
    text = json.dumps(fields | {"format_version": 2}, indent=1)[:-2]
    (tmp_path / "manifest.json").write_text(sealed(text))
    assert read_manifest(tmp_path) == manifest(piece(0, 20))


def sealed(text: str) -> str:
    """The text with the hash that fits it: an attacker can compute one too."""
    body = text.partition(',\n "sha256": "')[0]
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"step": 3', '"step": 4'),
        lambda text: text + " ",
        lambda text: sealed(text.replace('"format_version": 3', '"format_version": 4')),
        lambda text: sealed(text.replace('"progress"', '"regress"')),
        lambda text: sealed(text.replace('"losses": []', '"losses": [NaN]')),
        lambda text: sealed(text.replace('"left_out": []', '"left_out": [{"training_stage": "only"}]')),
        lambda text: sealed(text.replace("[0, 0, 0, 20,", "[0, 0, 0, 19,")),
        lambda text: sealed(text.replace("[0, 0, 0, 20,", "[0, 7, 0, 20,")),
        lambda text: sealed(text.replace("[0, 0, 0, 20,", "[0, 0, -1, 20,")),
        lambda text: sealed(text.replace(FILE, "../rank-00000.safetensors")),
        lambda text: sealed(text.replace(FILE, "/etc/passwd")),
        lambda text: "[]",
        lambda text: "null",
        lambda text: sealed("[" * 200_000),
    ],
    ids=[
        *(
            "empty",
            "torn",
            "changed",
            "longer",
            "newer",
            "incomplete",
            "NaN",
            "no window",
            "hole",
            "no such file",
            "negative",
        ),
        *("path", "absolute path", "a list", "null", "deeply nested"),
    ],
)
def test_a_damaged_manifest_is_called_so(spoil, tmp_path: Path) -> None:
    text = manifest(piece(0, 20)).to_json()
    assert spoil(text) != text
    (tmp_path / "manifest.json").write_text(spoil(text))
    with pytest.raises(CorruptCheckpoint):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint, match="FileNotFoundError"):
        read_manifest(tmp_path)

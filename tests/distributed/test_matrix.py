"""A covering subset of the equivalence matrix; `make drill` runs all of it."""

from itertools import combinations, product
from typing import Any

import pytest
import torch

from tests.distributed.matrix import TOLERANCE, differing, page, run
from tests.distributed.matrix_cells import AXES, Cell, all_cells, covering_cells, shown_by
from tests.distributed.matrix_worker import compare

CELLS = covering_cells()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run("covering", tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_layout_computes_what_plain_torch_does(lines: list[dict[str, Any]], cell: Cell) -> None:
    (line,) = [line for line in lines if Cell(**line["cell"]) == cell]
    assert line["errors"].keys() >= {"losses", "norms"} | ({"gradients"} if cell.optimizer == "sgd" else set())
    for kind, error in line["errors"].items():
        assert error <= TOLERANCE, kind


def test_the_subset_shows_every_layout_and_every_pair_of_values_that_any_cell_shows() -> None:
    possible = set().union(*map(shown_by, all_cells()))
    assert set().union(*map(shown_by, CELLS)) == possible
    assert len(CELLS) == len(set(CELLS)) < len(all_cells()) / 5
    ruled_out = [
        (one, other)
        for one, other in combinations(AXES, 2)
        for values in product(AXES[one], AXES[other])
        if (list(AXES).index(one), values[0], list(AXES).index(other), values[1]) not in possible
    ]
    assert set(ruled_out) == {
        ("pipeline", "data"),  # 4 × 2 processes
        ("pipeline", "sequence"),
        ("pipeline", "expert"),  # no neighbour in a pipeline of 4
        ("expert", "model"),  # experts to spread
        ("sequence", "engine"),  # DeepSpeed's PipelineEngine knows neither axis
        ("expert", "engine"),
        ("pipeline", "schedule"),  # nothing to interleave in one pipeline stage
        ("pipeline", "engine"),
        ("zero_stage", "engine"),  # DeepSpeed's PipelineEngine: ZeRO-1, 1f1b
        ("schedule", "engine"),
    }


def test_every_value_of_every_axis_is_in_the_full_matrix() -> None:
    for axis, values in AXES.items():
        assert {getattr(cell, axis) for cell in all_cells()} == set(values)
    assert {cell.micro_batch * cell.data * cell.accumulation for cell in all_cells()} == {16}


@pytest.mark.parametrize("kind", ["losses", "norms", "gradients"])
def test_a_wrong_scale_is_found(kind: str) -> None:
    plain = {"losses": [2.0, 1.0], "norms": [0.5, 0.4], "gradients": {"one": torch.ones(3), "other": torch.ones(2)}}
    assert compare(plain, plain) == {"losses": 0.0, "norms": 0.0, "gradients": 0.0}
    found = dict(plain)
    if kind == "gradients":
        found[kind] = {"one": torch.ones(3), "other": 1.001 * torch.ones(2)}
    else:
        found[kind] = [plain[kind][0], 1.001 * plain[kind][1]]
    errors = compare(found, plain)
    assert errors[kind] == pytest.approx(1e-3, rel=1e-3)
    line = {"cell": {axis: values[0] for axis, values in AXES.items()}, "errors": errors}
    assert differing([line]) == [line]
    assert "1.0e-03" in page([line], command="a test", seconds=1.0)


def test_a_nan_differs() -> None:
    line = {"cell": {}, "errors": {"losses": float("nan")}}
    assert differing([line]) == [line]

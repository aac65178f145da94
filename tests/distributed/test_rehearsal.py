"""The rehearsal against real engines: the program it builds is the program that DeepSpeed and we really run."""

import json
import sys
from typing import Any

import pytest

from tests.distributed import fake_ranks_worker, rehearsal_worker
from tests.integration.running import run_to_end


@pytest.fixture(scope="module")
def on_gloo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("rehearsal")
    output = folder / "seen.json"
    processes = f"--nproc_per_node={rehearsal_worker.WORLD_SIZE}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", processes]
    worker = ["-m", "tests.distributed.rehearsal_worker", str(output), str(folder)]
    finished = run_to_end([*torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def among_15_000(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fake")
    output = folder / "seen.json"
    finished = run_to_end(
        [sys.executable, "-m", "tests.distributed.fake_ranks_worker", str(output)], folder=folder, limit_seconds=200
    )
    assert finished.exit_code == 0, finished.explain()
    return json.loads(output.read_text())


@pytest.mark.parametrize("layout", rehearsal_worker.LAYOUTS)
def test_every_rank_makes_the_calls_of_its_program_in_order(on_gloo: dict[str, Any], layout: str) -> None:
    for rank in on_gloo[layout]:
        assert rank["differing"] == {}
        assert min(rank["num_calls"].values()) >= 2, "nothing was recorded, so nothing was compared"


@pytest.mark.parametrize("layout", rehearsal_worker.LAYOUTS)
def test_every_rank_holds_and_writes_what_is_rehearsed(on_gloo: dict[str, Any], layout: str) -> None:
    for rank in on_gloo[layout]:
        assert isinstance(rank["state"], int), rank["state"]
        assert rank["state"] > 0
        real_bytes, rehearsed_bytes = rank["file_bytes"]
        assert real_bytes == rehearsed_bytes
    assert sum(rank["file_bytes"][0] for rank in on_gloo[layout]) > 0


@pytest.mark.parametrize("layout", rehearsal_worker.LAYOUTS)
def test_what_really_runs_is_found_to_be_without_mistake(on_gloo: dict[str, Any], layout: str) -> None:
    assert [rank["mistakes"] for rank in on_gloo[layout]] == [[]] * rehearsal_worker.WORLD_SIZE


@pytest.mark.parametrize("layout", [name for name, layout in rehearsal_worker.LAYOUTS.items() if "expert" in layout])
def test_rows_on_their_way_to_experts_are_as_many_as_are_rehearsed(on_gloo: dict[str, Any], layout: str) -> None:
    """A router decides how many of them each rank sends; over all ranks of the axis together it decides nothing."""
    size = rehearsal_worker.LAYOUTS[layout]["expert"]
    ranks = on_gloo[layout]
    drops = rehearsal_worker.LAYOUTS[layout]["experts"].capacity_factor is not None
    for first in range(0, len(ranks), size):
        of_group = [rank["rows"] for rank in ranks[first : first + size]]
        assert of_group[0], "nothing went to experts"
        for phases in zip(*of_group, strict=True):
            # Where the ranks of a sequence are those of the experts, its exchanges are among them.
            said = phases[0][1]
            for made, each in zip(zip(*(real for real, _ in phases), strict=True), said, strict=True):
                assert 0 < sum(made) <= size * each if drops else sum(made) == size * each
    unequal = any(real != said for rank in ranks for real, said in rank["rows"])
    assert unequal, "a router so balanced shows nothing"


@pytest.mark.parametrize("layout", fake_ranks_worker.LAYOUTS)
@pytest.mark.parametrize("rank", fake_ranks_worker.RANKS)
def test_real_engines_of_one_rank_among_15_000_run_its_program(
    among_15_000: dict[str, Any], layout: str, rank: int
) -> None:
    seen = among_15_000[layout][str(rank)]
    assert seen["differing"] == {}
    assert isinstance(seen["state"], int), seen["state"]
    assert seen["file_bytes"][0] == seen["file_bytes"][1]
    assert min(seen["num_calls"].values()) > 10

"""Two twins, started as a person would: layouts of a cluster on four processes, and the loss falls."""

from pathlib import Path

import pytest

from tests.drills.twins import train
from tests.integration.reading import ledger
from tests.integration.running import only_run

STEPS = 15
LEAST_FALL = 0.05
"""Of the loss; 15 steps with warm-up take 10 % and more."""


@pytest.mark.parametrize(
    ("experiment", "layout"),
    [("mai1_500b", (2, 2, 2, 1, 4)), ("llama3_8b", (2, 1, 1, 3, 4))],
    ids=["experts, sequence and interleaved pipeline", "dense, interleaved pipeline over ZeRO-3"],
)
def test_a_twin_trains_in_the_layout_of_the_original(
    experiment: str, layout: tuple[int, ...], tmp_path: Path, prepared_root: Path
) -> None:
    words = ["eval.at_start=false"]
    trained = train(experiment, steps=STEPS, folder=tmp_path, prepared_root=prepared_root, words=words)
    found = trained.twin.layout_of("pretrain")
    assert (found.pipeline, found.sequence, found.expert, found.zero_stage, found.chunks_per_rank) == layout
    assert (trained.twin.world_size, len(trained.losses)) == (4, STEPS)
    assert trained.fall > LEAST_FALL
    assert [entry["status"] for entry in ledger(only_run(tmp_path / experiment))["stages"]] == ["promoted"]

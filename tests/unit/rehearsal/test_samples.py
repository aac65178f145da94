from dataclasses import replace

import pytest

from tests.unit.data.test_loader import STAGE as LOADED
from tests.unit.data.test_loader import run_config
from training.config.data_schema import DataConfig
from training.config.schema import ParallelConfig
from training.data.loader import StageLoader
from training.data.shards import PreparedData
from training.rehearsal.rehearsal import Rehearsal


@pytest.mark.parametrize(("pipeline", "num_replicas", "micro_batch"), [(1, 4, 2), (2, 3, 4), (2, 12, 1)])
def test_ranks_are_said_to_read_what_the_loader_gives_them(
    prepared: PreparedData, small_data: DataConfig, pipeline: int, num_replicas: int, micro_batch: int
) -> None:
    stage = replace(LOADED, micro_batch_sequences=micro_batch)
    config = run_config(small_data, stage)
    config = replace(
        config,
        parallel=ParallelConfig(pipeline=pipeline),
        cluster=replace(config.cluster, processes_per_node=pipeline * num_replicas),
    )
    loader = StageLoader(prepared, config, "s0")
    for batch, step in enumerate(Rehearsal.of(config, "s0").samples):
        for replica in range(num_replicas):
            read = loader.micro_batches(batch, replica=replica, num_replicas=num_replicas)
            ids = [part.sample_ids_B.tolist() for part in read if part.sample_ids_B is not None]
            for place in range(pipeline):
                assert step.samples[place, replica].tolist() == ids

from dataclasses import replace

import pytest

from tests.unit.data.test_loader import STAGE, run_config
from training.config.data_schema import DataConfig
from training.config.schema import RunConfig
from training.data.inspection import batch_place, describe_batch, describe_uses
from training.data.loader import StageLoader
from training.data.sample_ledger import SampleLedger
from training.data.shards import PreparedData
from training.errors import ConfigError, DataError
from training.reporting.records import StepRecord


def step_record(loader: StageLoader, step: int, batch: int, stage: str = "s0") -> StepRecord:
    return StepRecord(
        step=step,
        stage=stage,
        loss=1.0,
        grad_norm=1.0,
        lr=0.1,
        tokens=step,
        tokens_per_second=1.0,
        mfu=0.0,
        batch_id=loader.batch_id(batch),
        batch=batch,
        attempt=0,
        seconds=1.0,
    )


@pytest.fixture
def config(small_data: DataConfig) -> RunConfig:
    return run_config(small_data, STAGE)


@pytest.fixture
def loader(prepared: PreparedData, config: RunConfig) -> StageLoader:
    return StageLoader(prepared, config, "s0")


def test_uses_are_those_of_the_batches_that_steps_have_taken(
    prepared: PreparedData, config: RunConfig, loader: StageLoader
) -> None:
    batches = [0, 1, 4, 5]  # 2 and 3 were left out
    steps = [step_record(loader, step, batch) for step, batch in enumerate(batches, start=1)]
    ledger = SampleLedger(prepared, config, steps)
    expected: dict[str, list[tuple[int, int, int]]] = {}
    for step, batch in enumerate(batches, start=1):
        for index in loader.batch_samples(batch):
            sample = loader.sample(index)
            for piece in sample.pieces:
                name = prepared.train(sample.source).id_of(piece.record)
                expected.setdefault(name, []).append((step, index, piece.stop - piece.first))
    for source in prepared.manifest.sources:
        stream = prepared.train(source)
        for record in range(stream.num_records):
            name = stream.id_of(record)
            assert [(u.step, u.sample, u.num_targets) for u in ledger.uses(name)] == expected.get(name, [])
    name, uses = next(iter(expected.items()))
    assert len(list(describe_uses(name, ledger.uses(name)))) == len(uses)
    assert next(describe_uses("x", [])) == "x: it was not used"


def test_another_run_s_data_or_order_is_noticed(prepared: PreparedData, config: RunConfig, loader: StageLoader) -> None:
    steps = [step_record(loader, 1, 0)]
    other = replace(config, run=replace(config.run, seed=7))
    there = StageLoader(prepared, other, "s0").sample(0)
    name = prepared.train(there.source).id_of(there.pieces[0].record)
    with pytest.raises(DataError, match=r"step 1 trained on batch .*\n.*prepare the data"):
        SampleLedger(prepared, other, steps).uses(name)
    with pytest.raises(DataError, match="an earlier version wrote its record"):
        SampleLedger(prepared, config, [replace(steps[0], batch=None)])


def test_records_that_are_not_there_or_held_out_are_told(
    prepared: PreparedData, config: RunConfig, loader: StageLoader
) -> None:
    ledger = SampleLedger(prepared, config, [step_record(loader, 1, 0)])
    with pytest.raises(DataError, match=r"no source has a record.*\n.*ids look like kjv/"):
        ledger.uses("no such")
    held_out = prepared.held_out_documents("bible")[0].id
    with pytest.raises(DataError, match="it is held out of training in source bible"):
        ledger.uses(held_out)


def test_batches_are_named_by_step_or_by_place(small_data: DataConfig, loader: StageLoader) -> None:
    config = run_config(small_data, STAGE, replace(STAGE, tokens=24 * 32 * 5))
    assert batch_place(config, "s0:7") == batch_place(config, "8") == ("s0", 7)
    assert batch_place(config, "41") == ("s1", 0)
    for wrong in ("0", "46", "s2:1", "x"):
        with pytest.raises(ConfigError, match=r"a step from 1 to 45"):
            batch_place(config, wrong)


def test_a_batch_is_shown_with_all_its_records(prepared: PreparedData, loader: StageLoader) -> None:
    lines = list(describe_batch(prepared, loader, "s0", 2))
    records = [piece for index in loader.batch_samples(2) for piece in loader.sample(index).pieces]
    assert len(lines) == 1 + 24 + len(records)
    assert loader.batch_id(2) in lines[0]

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.config.batch_sizes import BatchRampStep
from training.config.data_schema import DataConfig
from training.config.eval_schema import EvalConfig
from training.config.reporting_schema import ReportingConfig
from training.config.schema import (
    AcceleratorConfig,
    CheckpointConfig,
    ClusterConfig,
    DeepSpeedSection,
    FaultToleranceConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    RunSection,
    ScheduleConfig,
    StageConfig,
)
from training.data.loader import Sample, StageLoader
from training.data.shards import PreparedData
from training.errors import DataError

STAGE = StageConfig(
    mixture={"bible": 0.75, "code": 0.25},
    tokens=24 * 32 * 40,
    sequence_length=32,
    global_batch_sequences=24,
    micro_batch_sequences=2,
)


def tokens_of(sample: Sample) -> np.ndarray:
    return np.append(sample.row.input_ids_T, sample.row.labels_T[-1])


def run_config(data: DataConfig, *stages: StageConfig, seed: int = 0) -> RunConfig:
    model = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=128,
        max_sequence_length=128,
    )
    accelerator = AcceleratorConfig(name="CPU")
    return RunConfig(
        run=RunSection(name="test", seed=seed),
        precision=Precision.fp32,
        model=model,
        parallel=ParallelConfig(),
        data=data,
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(),
        stages={f"s{i}": stage for i, stage in enumerate(stages)},
        eval=EvalConfig(suites={}),
        checkpoint=CheckpointConfig(every_steps=10),
        fault_tolerance=FaultToleranceConfig(),
        reporting=ReportingConfig(),
        cluster=ClusterConfig(num_nodes=1, processes_per_node=1, accelerator=accelerator),
        deepspeed=DeepSpeedSection(),
    )


@pytest.fixture
def loader(prepared: PreparedData, small_data: DataConfig) -> StageLoader:
    return StageLoader(prepared, run_config(small_data, STAGE), "s0")


@pytest.mark.parametrize(("num_replicas", "micro_batch"), [(1, 2), (1, 24), (2, 3), (3, 4), (4, 2), (12, 2), (24, 1)])
def test_replicas_together_hold_the_same_global_batch_under_every_layout(
    prepared: PreparedData, small_data: DataConfig, loader: StageLoader, num_replicas: int, micro_batch: int
) -> None:
    stage = replace(STAGE, micro_batch_sequences=micro_batch)
    other = StageLoader(prepared, run_config(small_data, stage), "s0")
    replicas = [other.micro_batches(5, replica=r, num_replicas=num_replicas) for r in range(num_replicas)]
    # Accumulation step by accumulation step, replica by replica: the global order of samples.
    rows = torch.cat([batches[m].input_ids_BT for m in range(len(replicas[0])) for batches in replicas])
    expected = torch.stack([torch.from_numpy(tokens_of(loader.sample(i))) for i in loader.batch_samples(5)])
    assert torch.equal(rows, expected[:, :-1])
    assert {batch.input_ids_BT.shape for batches in replicas for batch in batches} == {(micro_batch, 32)}
    assert other.batch_id(5) == loader.batch_id(5)


@pytest.mark.parametrize(("num_replicas", "micro_batch"), [(1, 2), (1, 24), (3, 4), (12, 2)])
def test_sample_ids_stay_with_their_sequences_under_every_layout(
    prepared: PreparedData, small_data: DataConfig, num_replicas: int, micro_batch: int
) -> None:
    def sequences(num_replicas: int, micro_batch: int) -> dict[int, list[int]]:
        """Return sample id -> token ids of one global batch of the second training stage."""
        second = replace(STAGE, micro_batch_sequences=micro_batch)
        loader = StageLoader(prepared, run_config(small_data, STAGE, second), "s1")
        found: dict[int, list[int]] = {}
        for r in range(num_replicas):
            for batch in loader.micro_batches(5, replica=r, num_replicas=num_replicas):
                assert batch.sample_ids_B is not None
                assert batch.sample_ids_B.dtype == torch.int64
                found |= zip(batch.sample_ids_B.tolist(), batch.input_ids_BT.tolist(), strict=True)
        return found

    expected = sequences(2, 3)
    assert len(expected) == 24, "two sequences of a global batch share an id"
    assert sequences(num_replicas, micro_batch) == expected


def test_no_two_samples_of_a_run_share_an_id(prepared: PreparedData, small_data: DataConfig) -> None:
    shorter = replace(STAGE, sequence_length=16, tokens=5 * 24 * 16 - 1)  # the last step is filled up
    config = run_config(small_data, STAGE, shorter, replace(STAGE, micro_batch_sequences=4))
    seen: list[int] = []
    for name in config.stages:
        loader = StageLoader(prepared, config, name)
        for step in range(config.num_steps(name)):
            for batch in loader.micro_batches(step, replica=0, num_replicas=1):
                assert batch.sample_ids_B is not None
                seen += batch.sample_ids_B.tolist()
    assert len(set(seen)) == len(seen) == (40 + 5 + 40) * 24


RAMPED = replace(STAGE, batch_ramp=[BatchRampStep(until_tokens=5 * 12 * 32, global_batch_sequences=12)])


@pytest.mark.parametrize(("num_replicas", "micro_batch"), [(1, 2), (2, 3), (6, 2)])
def test_batches_of_a_ramp_follow_each_other_under_every_layout(
    prepared: PreparedData, small_data: DataConfig, num_replicas: int, micro_batch: int
) -> None:
    config = run_config(small_data, replace(RAMPED, micro_batch_sequences=micro_batch), STAGE)
    loader = StageLoader(prepared, config, "s0")
    seen: list[int] = []
    for batch in range(7):
        replicas = [loader.micro_batches(batch, replica=r, num_replicas=num_replicas) for r in range(num_replicas)]
        assert len(replicas[0]) * num_replicas * micro_batch == (12 if batch < 5 else 24)
        for m in range(len(replicas[0])):
            for batches in replicas:
                ids_B = batches[m].sample_ids_B
                assert ids_B is not None
                seen += ids_B.tolist()
    assert seen == list(range(5 * 12 + 2 * 24))


def test_a_training_stage_goes_on_after_a_ramp_and_what_it_left_out(
    prepared: PreparedData, small_data: DataConfig
) -> None:
    config = run_config(small_data, RAMPED, STAGE)
    assert config.num_steps("s0") == 5 + 38  # 37.5 full batches are left of the budget
    first = StageLoader(prepared, config, "s1", left_out={"s0": 3}).micro_batches(0, replica=0, num_replicas=1)[0]
    assert first.sample_ids_B is not None
    assert first.sample_ids_B[0] == 5 * 12 + (38 + 3) * 24


def test_batches_left_out_of_one_training_stage_are_not_drawn_by_the_next(
    prepared: PreparedData, small_data: DataConfig
) -> None:
    config = run_config(small_data, STAGE, STAGE)
    seen: list[int] = []
    for name, batches in (("s0", 40 + 3), ("s1", 40)):
        loader = StageLoader(prepared, config, name, left_out={"s0": 3})
        for number in range(batches):
            for batch in loader.micro_batches(number, replica=0, num_replicas=1):
                assert batch.sample_ids_B is not None
                seen += batch.sample_ids_B.tolist()
    assert sorted(seen) == list(range((40 + 3 + 40) * 24))
    undisturbed = [StageLoader(prepared, config, "s0").batch_id(number) for number in range(40)]
    shifted = [StageLoader(prepared, config, "s0", left_out={"s0": 3}).batch_id(number) for number in range(40)]
    assert shifted == undisturbed, "a training stage's own order does not depend on what it leaves out"


def test_labels_are_the_next_tokens_of_the_stream(prepared: PreparedData, loader: StageLoader) -> None:
    sample = loader.sample(0)
    start = sample.unit * 32
    stream = prepared.train(sample.source)
    assert tokens_of(sample).tolist() == stream.tokens(start, start + 33).tolist()
    batch = loader.micro_batches(0, replica=0, num_replicas=1)[0]
    assert batch.input_ids_BT.dtype == batch.labels_BT.dtype == torch.int64
    assert batch.input_ids_BT[0].tolist() == sample.row.input_ids_T.tolist()
    assert batch.labels_BT[0].tolist() == sample.row.labels_T.tolist()
    assert batch.num_tokens == 2 * 32


DOCUMENTS = replace(STAGE, document_mask=True, sequence_length=100, micro_batch_sequences=24)
"""Sequences long enough to hold several chapters' ends."""


def test_without_a_document_mask_sequences_are_whole(loader: StageLoader) -> None:
    assert loader.micro_batches(0, replica=0, num_replicas=1)[0].documents_BT is None


def test_documents_begin_with_the_token_that_ended_the_one_before(
    prepared: PreparedData, small_data: DataConfig
) -> None:
    loader = StageLoader(prepared, run_config(small_data, DOCUMENTS), "s0")
    num_cut = 0
    for batch in range(8):
        (micro_batch,) = loader.micro_batches(batch, replica=0, num_replicas=1)
        assert micro_batch.documents_BT is not None
        for row, index in enumerate(loader.batch_samples(batch)):
            sample = loader.sample(index)
            stream = prepared.train(sample.source)
            starts = stream.starts(np.arange(stream.num_records + 1))
            first = sample.unit * 100
            # By the index of the prepared data: the token before a document's start is its first here.
            number_T = np.searchsorted(starts, np.arange(first, first + 100) + 1, side="right")
            found_T = micro_batch.documents_BT[row].numpy()
            assert np.array_equal(np.diff(found_T), np.diff(number_T))
            num_cut += int(found_T[-1] != found_T[0])
    assert num_cut >= 5, "hardly a document ended, so little was compared"


def test_a_document_mask_leaves_tokens_targets_and_samples_as_they_are(
    prepared: PreparedData, small_data: DataConfig
) -> None:
    plain, masked = (
        StageLoader(prepared, run_config(small_data, stage), "s0")
        for stage in (replace(DOCUMENTS, document_mask=False), DOCUMENTS)
    )
    one, other = (loader.micro_batches(3, replica=0, num_replicas=1)[0] for loader in (plain, masked))
    assert torch.equal(one.input_ids_BT, other.input_ids_BT)
    assert torch.equal(one.labels_BT, other.labels_BT)
    assert one.num_tokens == other.num_tokens
    assert plain.batch_id(3) == masked.batch_id(3)


def test_a_step_is_the_same_whenever_it_is_asked_for(
    prepared: PreparedData, small_data: DataConfig, loader: StageLoader
) -> None:
    in_turn = [loader.batch_id(step) for step in range(10)]
    resumed = StageLoader(prepared, run_config(small_data, STAGE), "s0")
    assert [resumed.batch_id(step) for step in reversed(range(10))] == in_turn[::-1]
    assert len(set(in_turn)) == 10
    assert len(resumed.batch_id(10**9)) == 16


def test_the_batch_id_follows_the_samples(prepared: PreparedData, small_data: DataConfig, loader: StageLoader) -> None:
    def batch_id(stage: StageConfig, seed: int = 0) -> str:
        return StageLoader(prepared, run_config(small_data, stage, seed=seed), "s0").batch_id(0)

    renamed_order = replace(STAGE, mixture={"code": 0.25, "bible": 0.75})
    assert batch_id(renamed_order) == batch_id(replace(STAGE, lr=1.0)) == loader.batch_id(0)
    others = [batch_id(STAGE, seed=1), batch_id(replace(STAGE, sequence_length=16))]
    others.append(batch_id(replace(STAGE, mixture={"bible": 0.5, "code": 0.5})))
    assert len({loader.batch_id(0), *others}) == 4


def test_training_stages_go_on_where_the_earlier_ones_stopped(prepared: PreparedData, small_data: DataConfig) -> None:
    num_windows = (prepared.train("bible").num_tokens - 1) // 32
    bible = replace(STAGE, mixture={"bible": 1.0})
    steps = num_windows // 24 // 4
    first = replace(STAGE, tokens=steps * 24 * 32)
    between = replace(bible, sequence_length=16, tokens=10 * 24 * 16)
    last = replace(bible, tokens=(num_windows // 24 - steps) * 24 * 32)
    config = run_config(small_data, first, between, last)
    seen: list[int] = []
    for name in ("s0", "s2"):
        loader = StageLoader(prepared, config, name)
        samples = [loader.sample(i) for i in range(config.num_steps(name) * 24)]
        seen += [sample.unit for sample in samples if sample.source == "bible"]
    bible_draws = len(seen)
    assert num_windows * 0.8 < bible_draws <= num_windows
    assert len(set(seen)) == bible_draws, "a window was repeated before the epoch's end"


def test_an_epoch_sees_every_window_once_and_then_starts_again(prepared: PreparedData, small_data: DataConfig) -> None:
    loader = StageLoader(prepared, run_config(small_data, replace(STAGE, mixture={"code": 1.0})), "s0")
    num_windows = (prepared.train("code").num_tokens - 1) // 32
    windows = [loader.sample(i).unit for i in range(2 * num_windows)]
    assert sorted(windows[:num_windows]) == sorted(windows[num_windows:]) == list(range(num_windows))
    assert windows[:num_windows] != windows[num_windows:]


def test_a_source_shorter_than_one_sequence_is_refused(prepared: PreparedData, small_data: DataConfig) -> None:
    long = replace(STAGE, sequence_length=10_000_000)
    with pytest.raises(DataError, match=r"stages\.s0\.mixture\.bible: its \d+ training tokens"):
        StageLoader(prepared, run_config(small_data, long), "s0")

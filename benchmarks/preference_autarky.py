"""Contestant: our DPO, as a run does it: pairs in packs, log-probabilities of the reference computed once before."""

import time
from collections.abc import Callable
from itertools import count

from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.data.stage_order import NOTHING_LEFT_OUT, num_samples
from training.engine import process_group
from training.engine.build import build_engine
from training.engine.collectives import CollectiveLog
from training.fault_tolerance.heartbeat import Heartbeat
from training.fault_tolerance.signals import StopRequest
from training.stages.interruption import InterruptibleInference, Interruption
from training.stages.references import answers_of, compute


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for ever, as training.stages.runner does between two records."""
    train_arranged(config, training_stage, steps, lambda batch: batch)


def train_arranged(
    config: RunConfig, training_stage: str, steps: Steps, arrange: Callable[[MicroBatch], MicroBatch]
) -> None:
    """Train for ever on what `arrange` makes of the loader's batches."""
    processes = process_group.start(config.fault_tolerance.collective_timeout_seconds)
    loader = StageLoader(ensure(config.data), config, training_stage)
    engine = build_engine(config, training_stage, processes)
    begun = time.perf_counter()
    loader.references = compute(
        InterruptibleInference(
            engine, Interruption(request=StopRequest(), processes=processes), Heartbeat(CollectiveLog())
        ),
        processes,
        loader,
        answers_of(loader, num_samples(config, training_stage, NOTHING_LEFT_OUT)),
        batch_sequences=config.stages[training_stage].micro_batch_sequences,
    )
    steps.open(reference_seconds=time.perf_counter() - begun)
    for step in count():
        batches = [arrange(batch) for batch in loader.micro_batches(step, replica=0, num_replicas=1)]
        steps.after_step(engine.train_batch(batches, lr=config.optimizer.lr).loss)

"""A run that is killed again and again, with another number of replicas each time, trains on the samples of one that is
not: the same global batches in the same order, nothing missing, nothing twice.

    python -m tests.drills.sample_ledger

Two runs of one config over some epochs of two sources. One is left alone. The other is killed three times by SIGKILL
(each time in the midst of an epoch) and goes on with 4, 2, 4 and 2 replicas.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.drills.drill_run import conclude
from tests.integration.reading import records
from tests.integration.running import kill, only_run, run_directories, submit, submit_to_end
from training.config.load import load_frozen
from training.config.schema import RunConfig
from training.data.loader import StageLoader
from training.data.sample_ledger import SampleLedger
from training.data.shards import PreparedData
from training.reporting.metrics import latest_steps, read_metrics
from training.reporting.records import StepRecord

STAGE = "pretrain"
REPLICAS = (4, 2, 4, 2)
KILLED_AFTER = (7, 19, 31)
"""Steps; an epoch of the larger source is about 11: each kill hits one in its midst."""
NUM_STEPS = 40
_SEQUENCES, _LENGTH = 16, 64
_OVERRIDES = (
    "experiment=demo_single",
    "reporting.wandb.mode=disabled",
    "data=smoke",
    "model.vocab_size=512",
    "~stages.anneal",
    f"parallel@stages.{STAGE}.parallel=zero1",
    f"stages.{STAGE}.sequence_length={_LENGTH}",
    f"stages.{STAGE}.global_batch_sequences={_SEQUENCES}",
    f"stages.{STAGE}.micro_batch_sequences=2",
    f"stages.{STAGE}.tokens={NUM_STEPS * _SEQUENCES * _LENGTH}",
    f"+stages.{STAGE}.max_epochs.python=1.5",
    f"stages.{STAGE}.eval_suite=null",
    f"stages.{STAGE}.gate=null",
    "data.sources.kjv.max_documents=12",
    "data.sources.python.max_documents=3",
    "data.held_out_fraction=0.1",
    "checkpoint.every_steps=2",
)


@dataclass(kw_only=True)
class Found:
    """What the drill saw."""

    kills: int = 0
    steps: int = 0
    samples: int = 0
    again: int = 0
    """Steps that were done again after a kill."""
    uses: int = 0
    epochs: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        epochs = ", ".join(f"{name} {number:.2f}" for name, number in self.epochs.items())
        return (
            f"{self.kills} kills, replicas {' -> '.join(map(str, REPLICAS))}; {self.steps} steps ({self.again} done "
            f"again), {self.samples} samples, epochs: {epochs}; {self.uses} uses of documents as the ledger says; "
            f"{len(self.problems)} problems"
        )


def main() -> int:
    """Run the drill and print its line."""
    folder = Path(tempfile.mkdtemp(prefix="autarky-drill-"))
    found = drill(folder)
    print(*found.problems, sep="\n", end="\n" if found.problems else "")
    print(found)
    return conclude(folder, is_wrong=bool(found.problems))


def drill(folder: Path) -> Found:
    """Do both runs under a folder and compare them."""
    overrides = [*_OVERRIDES, f"data.prepared_root={folder / 'prepared'}"]
    found = Found()
    alone = [*overrides, f"run.root={folder / 'alone'}", f"cluster.processes_per_node={REPLICAS[1]}"]
    finished = submit_to_end(alone, folder=folder)
    assert finished.exit_code == 0, finished.explain()
    hurt_root = folder / "hurt"
    for start, replicas in enumerate(REPLICAS):
        words = [*overrides, f"run.root={hurt_root}", f"cluster.processes_per_node={replicas}"]
        if start:
            words += [f"run.id={only_run(hurt_root).name}", "resume=auto"]
        with submit(words, folder=folder) as job:
            if start < len(KILLED_AFTER):
                last = KILLED_AFTER[start]
                job.wait_until(lambda last=last: any(len(_steps(run)) >= last for run in run_directories(hurt_root)))
                kill(job.ranks()[replicas - 1])
                found.kills += 1
            exit_code = job.wait().exit_code
            assert (exit_code == 0) == (start == len(KILLED_AFTER)), f"start {start} ended with {exit_code}"
            assert job.survivors(within_seconds=30) == []
    _compare(only_run(folder / "alone"), only_run(hurt_root), found)
    return found


def _steps(run: Path) -> set[int]:
    return {record["step"] for record in records(run, "step")}


def _compare(alone: Path, hurt: Path, found: Found) -> None:
    config = load_frozen(hurt)
    prepared = PreparedData.open(config.data)
    here, there = (latest_steps(read_metrics(run / "metrics.jsonl").records) for run in (hurt, alone))
    found.steps, found.again = len(here), len(records(hurt, "step")) - len(here)
    for mine, theirs in zip(here, there, strict=True):
        if (mine.step, mine.batch, mine.batch_id) != (theirs.step, theirs.batch, theirs.batch_id):
            found.problems.append(f"step {mine.step} trained on {mine.batch_id}, undisturbed on {theirs.batch_id}")
    if any(step.batch != place for place, step in enumerate(here)):
        found.problems.append("a global batch is missing, or was trained on twice")
    if len({step.attempt for step in here}) != len(REPLICAS):
        found.problems.append("a start has done no step")
    loader = StageLoader(prepared, config, STAGE)
    _check_epochs(loader, here, found)
    _check_uses(prepared, config, loader, here, found)


def _check_epochs(loader: StageLoader, steps: list[StepRecord], found: Found) -> None:
    """Every unit of a source comes once in each whole epoch, and at most once in the last one."""
    samples = [index for step in steps for index in loader.batch_samples(step.batch or 0)]
    found.samples = len(samples)
    if samples != list(range(len(samples))):
        found.problems.append("samples are missing, or come twice")
    places = loader.order.places(np.array(samples))
    for place, source in enumerate(loader.order.sources):
        units, num_units = places[places[:, 0] == place, 1], loader.order.units(place).num_units
        found.epochs[source] = len(units) / num_units
        for epoch in np.split(units, range(num_units, len(units), num_units)):
            if len(np.unique(epoch)) != len(epoch):
                found.problems.append(f"{source}: a window came twice in an epoch")


def _check_uses(
    prepared: PreparedData, config: RunConfig, loader: StageLoader, steps: list[StepRecord], found: Found
) -> None:
    """What the ledger says of every document is what is found by reading all batches."""
    read: Counter[tuple[str, int, int]] = Counter()
    for step in steps:
        for index in loader.batch_samples(step.batch or 0):
            sample = loader.sample(index)
            for piece in sample.pieces:
                name = prepared.train(sample.source).id_of(piece.record)
                read[(name, step.step, index)] += piece.stop - piece.first
    ledger = SampleLedger(prepared, config, steps)
    told: Counter[tuple[str, int, int]] = Counter()
    for name in {name for name, _, _ in read}:
        told.update({(name, use.step, use.sample): use.num_targets for use in ledger.uses(name)})
    found.uses = len(told)
    if read != told:
        found.problems.append("the ledger says other uses of documents than there are")


if __name__ == "__main__":
    sys.exit(main())

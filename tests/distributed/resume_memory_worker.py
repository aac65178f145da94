"""One rank: writes its highest resident memory while it trains and saves, or while it is built and loads.

python -m tests.distributed.resume_memory_worker (train | resume) FOLDER
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import progress_at
from training.checkpoint.saver import Saver
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.engine.base import Engine
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, start

WORLD_SIZE = 2
STEP = 1


def config_of() -> RunConfig:
    """47 million parameters and little else: their bytes are what is measured, not activations."""
    small = small_config(world_size=WORLD_SIZE, zero_stage=3, micro_batch=1)
    model = replace(
        small.model, hidden_size=512, ffn_size=1408, vocab_size=8192, num_layers=12, num_heads=8, num_kv_heads=8
    )
    stages = {STAGE: replace(small.stages[STAGE], sequence_length=16, global_batch_sequences=WORLD_SIZE)}
    return replace(small, model=model, stages=stages)


def highest_bytes() -> int:
    """The process's highest resident memory since its start or `forget_highest`."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to what is resident now


def train_step(engine: Engine) -> None:
    ids_BT = torch.arange(16).view(1, 16)
    engine.train_batch([MicroBatch(input_ids_BT=ids_BT, labels_BT=ids_BT)], lr=1e-3)


def train(config: RunConfig, processes: ProcessGroup, folder: Path) -> dict[str, int]:
    """Two steps with a save in flight, after one of each."""
    engine = build_engine(config, STAGE, processes)
    saver = Saver(processes.with_own_group(60), config={})
    for step in (STEP, STEP + 1):
        forget_highest()
        train_step(engine)
        saver.begin(engine.snapshot, directory=folder, progress=progress_at(step), layout=engine.layout.describe())
        train_step(engine)
        outcome = saver.finish()
        assert outcome.checkpoint is not None, outcome.failure
    return {"steady": highest_bytes()}


def resume(config: RunConfig, processes: ProcessGroup, folder: Path) -> dict[str, int]:
    engine = build_engine(config, STAGE, processes)
    seen = {"built": highest_bytes()}
    forget_highest()
    seen["before"] = highest_bytes()
    seen["read"] = engine.load(folder / f"step-{STEP:08d}").bytes_read
    seen["loaded"] = highest_bytes()
    return seen


def main(what: str, folder: Path) -> None:
    processes = start(60)
    seen = {"train": train, "resume": resume}[what](config_of(), processes, folder)
    everyone = [json.loads(text) for text in processes.gather_text(json.dumps(seen))]
    if processes.rank == 0:
        (folder / f"{what}.json").write_text(json.dumps(everyone))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    leave()

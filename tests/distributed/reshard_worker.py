"""One rank: takes states saved at 2 × 2 under ZeRO-3 to every other layout and back; writes what it saw as JSON.

python -m tests.distributed.reshard_worker FOLDER

Started once with 4 processes, on two nodes, once with 2 and once with 1. The 4 save what all load, and wait in the end
for what the others have made of it.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import differing_tensors, one_step, progress_at, save
from tests.distributed.extent import IS_WHOLE
from training.checkpoint.saver import Saver
from training.config.schema import PipelineSchedule, RunConfig
from training.engine.base import Engine
from training.engine.build import build_engine
from training.engine.process_group import ProcessGroup, launched_world, leave_groups, start
from training.engine.stateful import StatefulEngine

SAVED_STEP = 3
NUM_STEPS_AFTER = 10 if IS_WHOLE else 4
LRS = [1e-3 * min(1.0, (step + 1) / 5) for step in range(SAVED_STEP + NUM_STEPS_AFTER)]

MODELS: dict[str, dict[str, bool]] = {"untied": {}, "tied": {"tied": True}, "padded": {"narrow": True}}
"""Padded: what 4 ranks cannot share equally under ZeRO-3, nor 2 under ZeRO-1 and 2."""
SAVED: dict[str, Any] = {"pipeline": 2, "zero_stage": 3}
"""On four processes."""
INTERLEAVED = {"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2}
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"1x1 zero3": {"zero_stage": 3}},
    2: {
        "2x1 zero3": {"pipeline": 2, "zero_stage": 3},
        "1x2 zero3": {"zero_stage": 3},
        "1x2 zero1": {"zero_stage": 1},
        "1x2 zero2": {"zero_stage": 2},
    },
    4: {
        "1x4 zero3": {"zero_stage": 3},
        "4x1 zero3": {"pipeline": 4, "zero_stage": 3},
        "2x2 zero1": {"pipeline": 2, "zero_stage": 1},
        "2x2 zero2": {"pipeline": 2, "zero_stage": 2},
        "2x2 interleaved": {"pipeline": 2, "zero_stage": 3, **INTERLEAVED},
    },
}
"""Number of processes -> pipeline × data, ZeRO: what loads what was saved."""
_FEW = {
    "untied": ("1x1 zero3", "1x2 zero2", "2x2 interleaved"),
    "tied": ("2x1 zero3", "4x1 zero3", "2x2 zero1"),
    "padded": tuple(name for layouts in LAYOUTS.values() for name in layouts),
}
MOVES = [
    (model, world_size, layout)
    for model in MODELS
    for world_size in LAYOUTS
    for layout in LAYOUTS[world_size]
    if IS_WHOLE or layout in _FEW[model]
]
"""Model, number of processes, layout: what is loaded where, and brought back."""
LONGEST_WAIT_SECONDS = 600
LONGEST_UPDATE_SECONDS = 30
"""So long a copy waits for an update that waits for it."""


def config_of(model: str, layout: dict[str, Any], world_size: int) -> RunConfig:
    return small_config(world_size=world_size, **MODELS[model], **layout)


def source_of(folder: Path, model: str) -> Path:
    return folder / model / f"step-{SAVED_STEP:08d}"


def again_of(folder: Path, model: str, layout: str) -> Path:
    """Where a layout saves what it has loaded."""
    return folder / f"{model} {layout}" / f"step-{SAVED_STEP:08d}"


def output_of(folder: Path, world_size: int) -> Path:
    return folder / f"seen-{world_size}.json"


def train_on(engine: Engine, config: RunConfig, processes: ProcessGroup) -> list[float]:
    """Losses of the steps after the saved one."""
    which = range(SAVED_STEP, SAVED_STEP + NUM_STEPS_AFTER)
    return [one_step(engine, config, processes, step, LRS).loss for step in which]


def make_sources(processes: ProcessGroup, folder: Path) -> dict[str, list[float]]:
    """Save every model's state in the middle of a run; return the losses of the rest of it."""
    unbroken = {}
    for model in MODELS:
        config = config_of(model, SAVED, processes.world_size)
        engine = build_engine(config, STAGE, processes)
        for step in range(SAVED_STEP):
            one_step(engine, config, processes, step, LRS)
        save(engine, processes, source_of(folder, model).parent, progress_at(SAVED_STEP))
        unbroken[model] = train_on(engine, config, processes)
        engine.close()
    return unbroken


def move(engine: Any, config: RunConfig, processes: ProcessGroup, source: Path, again: Path) -> dict[str, Any]:
    """Load a checkpoint, save it again with a copy that only begins when the next update waits, train on meanwhile."""
    counts_before = update_counts(engine)
    loaded = engine.load(source)
    counts_loaded = update_counts(engine)
    update_waits = threading.Event()
    copy, settle = engine.snapshot._copy, engine.snapshot._copied.wait
    engine.snapshot._copied.wait = lambda: (update_waits.set(), settle())
    engine.snapshot._copy = lambda: (update_waits.wait(LONGEST_UPDATE_SECONDS), copy())
    savers = processes.with_own_group(120)
    saver = Saver(savers, config={})
    saver.begin(engine.snapshot, directory=again.parent, progress=loaded.progress, layout=engine.layout.describe())
    losses = train_on(engine, config, processes)
    outcome = saver.finish()
    assert outcome.checkpoint == again, outcome.failure
    leave_groups([savers.cpu_group])
    return {
        "differing": differing_tensors(source, again) if processes.rank == 0 else [],
        "update_counts": processes.gather_text(f"{counts_before} {counts_loaded}"),
        "bytes_read": [int(text) for text in processes.gather_text(str(loaded.bytes_read))],
        "update_waited": processes.agree(update_waits.is_set()),
        "losses": losses,
    }


def update_counts(engine: StatefulEngine) -> list[int]:
    """AdamW's counts of updates, each once."""
    counts = [state._base.state[flat]["step"].item() for state in engine._states for flat in state._flat_weights()]
    return sorted({int(count) for count in counts})


def spread(processes: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Load every source under every layout of this number of processes."""
    seen: dict[str, Any] = {}
    for model, world_size, name in MOVES:
        if world_size == processes.world_size:
            config = config_of(model, LAYOUTS[world_size][name], world_size)
            engine = build_engine(config, STAGE, processes)
            again = again_of(folder, model, name)
            seen[f"{model} {name}"] = move(engine, config, processes, source_of(folder, model), again)
            engine.close()
    return seen


def collect(processes: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Load what every layout saved under the layout that it came from."""
    seen: dict[str, Any] = {}
    for model in MODELS:
        config = config_of(model, SAVED, processes.world_size)
        engine = build_engine(config, STAGE, processes)
        for name in (name for moved, _, name in MOVES if moved == model):
            back = again_of(folder / "back", model, name)
            seen[f"{model} {name}"] = move(engine, config, processes, again_of(folder, model, name), back)
        engine.close()
    return seen


def await_others(folder: Path, world_size: int) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    for other in LAYOUTS:
        while other != world_size and not output_of(folder, other).exists():
            assert time.monotonic() < deadline, f"the job of {other} processes wrote nothing"
            time.sleep(0.05)


def main(folder: Path) -> None:
    processes = start(120)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"[rank {processes.rank} of {processes.world_size}] {time.monotonic() - began:.0f} s: {what}", flush=True)

    place = {
        "local_rank": os.environ.get("LOCAL_RANK"),
        "node": os.environ.get("GROUP_RANK"),
        "world": launched_world(),
    }
    seen: dict[str, Any] = {"places": [json.loads(text) for text in processes.gather_text(json.dumps(place))]}
    if processes.world_size == 4:
        seen["unbroken"] = make_sources(processes, folder)
        say("saved")
        if processes.rank == 0:
            (folder / "saved").touch()
    seen["moved"] = spread(processes, folder)
    say("loaded by all layouts")
    if processes.world_size == 4:
        await_others(folder, processes.world_size)
        say("the other jobs are done")
        seen["returned"] = collect(processes, folder)
        say("returned")
    if processes.rank == 0:
        whole = output_of(folder, processes.world_size).with_suffix(".tmp")
        whole.write_text(json.dumps(seen))
        whole.rename(output_of(folder, processes.world_size))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

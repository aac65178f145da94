"""One rank: builds engines under ZeRO-3 and writes how far the process's memory rose meanwhile (rank 0).

python -m tests.distributed.building_worker OUTPUT.json

Linux counts the highest resident memory of a process (VmHWM) and lets it be set back (proc(5), clear_refs). Tensors
should be mapped one by one (MALLOC_MMAP_THRESHOLD_), as the large ones of a large model are: in glibc's heap the
holes that freed small ones leave would be counted too.
"""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch

from tests.distributed.configs import STAGE, small_config
from tests.distributed.ending import leave
from training.config.schema import PipelineSchedule, Precision, RunConfig
from training.engine.build import build_engine
from training.engine.deepspeed_private import whole_numel
from training.engine.process_group import ProcessGroup, start
from training.engine.stateful import StatefulEngine
from training.models.decoder import Decoder, decoder_layers

WORLD_SIZE = 4
BUILT: dict[str, dict[str, Any]] = {
    "zero3": {},
    "zero3_bf16": {"precision": Precision.bf16},
    "pipeline_zero3": {"pipeline": 2},
    "pipeline_zero3_interleaved_bf16": {
        **{"pipeline": 2, "schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2},
        "precision": Precision.bf16,
    },
}


def config_of(*, large: bool, **layout: Any) -> RunConfig:
    """A model whose weights are most of what a process holds, or a narrow one whose shards are padded."""
    small = small_config(world_size=WORLD_SIZE, zero_stage=3, narrow=True, **layout)
    if not large:
        return small
    return replace(small, model=replace(small.model, hidden_size=512, ffn_size=2048, vocab_size=512, num_layers=12))


class HighWater:
    """The highest resident memory of this process: since the last mark, and since the first."""

    _highest = 0

    def __init__(self) -> None:
        self._first = self.mark()
        self._highest = 0  # of what was before, nothing

    def mark(self) -> int:
        """Measure from now on; return what is resident now."""
        gc.collect()
        self._highest = max(self._highest, _status_bytes("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        self._marked = _status_bytes("VmRSS")
        return self._marked

    def rise(self) -> int:
        """Return bytes above the last mark."""
        return _status_bytes("VmHWM") - self._marked

    def rise_now(self) -> int:
        """Return bytes resident now above what was at the first mark."""
        return _status_bytes("VmRSS") - self._first

    def rise_in_all(self) -> int:
        """Return bytes above the first mark."""
        return max(self._highest, _status_bytes("VmHWM")) - self._first


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(kibibytes)


@contextmanager
def rises_before_initialize(water: HighWater) -> Iterator[list[dict[str, int]]]:
    """Inside, note for each model handed to `deepspeed.initialize` how far memory has risen while it was built."""
    noted: list[dict[str, int]] = []
    initialize = deepspeed.initialize

    def noting(*, model: Decoder, **rest: Any) -> Any:
        rise = water.rise()
        layers = [sum(whole_numel(p) for p in layer.parameters()) for layer in model.sequence]
        noted.append({"rise": rise, "whole": sum(layers), "largest_layer": max(layers)})
        result = initialize(model=model, **rest)
        water.mark()
        return result

    deepspeed.initialize = noting
    try:
        yield noted
    finally:
        deepspeed.initialize = initialize


def build(config: RunConfig, processes: ProcessGroup) -> dict[str, Any]:
    """Rises of memory in bytes: as models were built, of the engine beside what it then holds, after its end."""
    water = HighWater()
    with rises_before_initialize(water) as models:
        engine = build_engine(config, STAGE, processes)
    assert isinstance(engine, StatefulEngine)
    seen = {
        "models": models,
        "num_replicas": engine.layout.num_replicas,
        "rise": water.rise_in_all(),
        "held": sum(engine.held_bytes().values()),
    }
    engine.close()
    del engine
    gc.collect()
    return {**seen, "left": water.rise_now()}


def wrong_weights(config: RunConfig, processes: ProcessGroup) -> list[str]:
    """Names of master weights that are not bit by bit those of a plain decoder, rounded to the run's precision."""
    engine = build_engine(config, STAGE, processes)
    assert isinstance(engine, StatefulEngine)
    dtype = torch.bfloat16 if config.precision is Precision.bf16 else torch.float32
    plain = dict(Decoder(decoder_layers(config.model, seed=config.run.seed)).canonical_parameters())
    wrong = [
        fragment.parameter
        for state in engine._states
        for fragment in state.fragments
        for values in [fragment.tensors["weight"]]
        if not torch.equal(
            values, plain[fragment.parameter].detach().to(dtype).float().flatten()[fragment.start :][: len(values)]
        )
    ]
    engine.close()
    return wrong


def main() -> None:
    processes = start(timeout_seconds=120)
    seen = {}
    for name, layout in BUILT.items():
        wrong = wrong_weights(config_of(large=False, **layout), processes)  # first: it imports what DeepSpeed needs
        mine = {"wrong": wrong, **build(config_of(large=True, **layout), processes)}
        seen[name] = [json.loads(text) for text in processes.gather_text(json.dumps(mine))]
    if processes.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    leave()

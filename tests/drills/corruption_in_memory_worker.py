"""One rank of 4: flips bits in memory and in computations under several layouts, and counts what the checks find.

python -m tests.drills.corruption_in_memory_worker OUTPUT.json TRIALS SEED LAYOUT...        (written by rank 0)
"""

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tests.distributed.configs import STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from training.checkpoint.tensor_digest import tensor_digest
from training.config.fault_tolerance_schema import CorruptionConfig
from training.config.schema import PipelineSchedule, Precision
from training.engine.base import USUAL_STEP, StepInstructions, StepResult
from training.engine.build import build_engine
from training.engine.pipeline_zero import PipelineZeroEngine
from training.engine.process_group import ProcessGroup, start
from training.engine.stateful import StatefulEngine
from training.engine.zero import ZeroEngine
from training.errors import SilentCorruption
from training.fault_tolerance.corruption import CorruptionChecks
from training.fault_tolerance.poisoned import flip_bit
from training.models.layers import DecoderBlock

WORLD_SIZE = 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "ZeRO-0 fp32": {"zero_stage": 0},
    "ZeRO-1 bf16": {"zero_stage": 1, "precision": Precision.bf16},
    "ZeRO-2 fp32": {"zero_stage": 2},
    "ZeRO-3 bf16": {"zero_stage": 3, "precision": Precision.bf16},
    "ZeRO-3 fp32": {"zero_stage": 3},
    "pipeline 2 × ZeRO-1 fp32": {"pipeline": 2, "zero_stage": 1},
    "pipeline 2 × ZeRO-3 bf16 interleaved": {
        **{"pipeline": 2, "zero_stage": 3, "precision": Precision.bf16, "tied": True, "dropout": 0.1},
        **{"schedule": PipelineSchedule.interleaved, "chunks_per_rank": 2},
    },
}
LR = 1e-3
GOOD_STEPS, REFUSED = 6, 3
_NAMED = re.compile(r"rank (\d+) on ")


@dataclass(kw_only=True)
class Row:
    """Flips of one kind, and what became of them."""

    layout: str
    fault: str
    check: str
    bits: str
    trials: int = 0
    found: int = 0
    named: int = 0
    """Found, and exactly the rank that it was done to is named."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is flipped; drawn alike on every rank."""

    victim: int
    bit: int
    place: float
    """Of the element, as a share of the tensor."""
    which: float
    """Of the tensor, as a share of their number."""


class Bench:
    """One engine after a few steps, and the ways to hurt it."""

    def __init__(self, options: dict[str, Any], processes: ProcessGroup) -> None:
        self.config = small_config(world_size=WORLD_SIZE, **options)
        self.processes = processes
        self.engine = build_engine(self.config, STAGE, processes)
        self.engine.snapshot.take()
        self.bits_of_copies = 16 if self.config.precision is Precision.bf16 else 32

    def step(self, number: int, instructions: StepInstructions = USUAL_STEP) -> StepResult:
        layout = self.engine.layout
        replica = layout.replica_of(self.processes.rank)
        batches = micro_batches(number, replica=replica, num_replicas=layout.num_replicas, micro_batch=2)
        return self.engine.train_batch(batches, lr=LR, instructions=instructions)

    def start_over(self) -> None:
        """Go back to the initial weights and moments."""
        assert isinstance(self.engine, StatefulEngine)
        for piece in self.engine.snapshot.pieces:
            piece.put(piece.start, self.engine.snapshot.values(piece))
        self.engine._restored(0)

    def digest(self) -> list[int]:
        [copies] = self.engine.weight_copies()
        return [
            *(tensor_digest(piece.live) for piece in self.engine.snapshot.pieces),
            *(tensor_digest(part) for parts in copies.by_owner.values() for part in parts),
        ]

    def throw_away(self) -> None:
        """Clear up after a step that was found out."""
        if isinstance(self.engine, ZeroEngine):
            self.engine._drop()
        else:
            assert isinstance(self.engine, PipelineZeroEngine)
            self.engine._gradient.void()
            self.engine._update()


def chosen(tensors: list[Tensor], trial: Trial) -> tuple[Tensor, int]:
    filled = [tensor for tensor in tensors if tensor.numel()]
    tensor = filled[int(trial.which * len(filled))]
    return tensor, int(trial.place * tensor.numel())


def flips_of(bench: Bench, fault: str) -> list[Tensor]:
    """The tensors of this rank of which one is hit."""
    [copies] = bench.engine.weight_copies()
    if fault == "copy":
        return [part for parts in copies.by_owner.values() for part in parts]
    if fault == "fp32 weight":
        return copies.kept
    return [piece.live for piece in bench.engine.snapshot.pieces]


@contextmanager
def computing_wrong(bench: Bench, fault: str, trial: Trial) -> Iterator[None]:
    """Inside, one element of one decoder block's output, or of its gradient, has a wrong bit once."""
    state = {"left": bench.processes.rank == trial.victim}

    def flip(values: Tensor) -> Tensor:
        state["left"] = False
        values = values.clone()
        # Behind the last target gradients are 0; a sign there, or a number near 1e-38, changes nothing that follows.
        elements = values.detach().view(-1).nonzero().view(-1)
        flip_bit(values.detach(), element=int(elements[int(trial.place * len(elements))]), bit=trial.bit)
        return values

    def after_forward(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(module, DecoderBlock) or not state["left"]:
            return None
        if fault == "activation":
            return flip(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: flip(gradient) if state["left"] else gradient)
        return None

    hook = register_module_forward_hook(after_forward)
    try:
        yield
    finally:
        hook.remove()


def in_memory(bench: Bench, fault: str, check: str) -> Callable[[Trial], None]:
    at_rest = CorruptionConfig(check_replicas=False, at_rest_every_steps=1)
    checks = CorruptionChecks(at_rest if check == "at rest" else CorruptionConfig(), bench.processes)

    def attempt(trial: Trial) -> None:
        checks.after_update(bench.engine, 1)
        hurt = bench.processes.rank == trial.victim
        tensor, element = chosen(flips_of(bench, fault), trial)
        if hurt:
            flip_bit(tensor, element=element, bit=trial.bit)
        try:
            checks.before_update(bench.engine)
            checks.before_save(bench.engine)
        finally:
            if hurt:
                flip_bit(tensor, element=element, bit=trial.bit)

    return attempt


def in_computation(bench: Bench, fault: str) -> Callable[[Trial], None]:
    def attempt(trial: Trial) -> None:
        try:
            with computing_wrong(bench, fault, trial):
                bench.step(1, StepInstructions(twice=True, accept=lambda _loss: False))
        except SilentCorruption:
            bench.throw_away()
            raise

    return attempt


def tried(row: Row, attempt: Callable[[Trial], None], bits: list[int], trials: int, draw: random.Random) -> Row:
    for _ in range(trials):
        trial = Trial(
            victim=draw.randrange(WORLD_SIZE), bit=draw.choice(bits), place=draw.random(), which=draw.random()
        )
        row.trials += 1
        try:
            attempt(trial)
        except SilentCorruption as error:
            row.found += 1
            row.named += [int(rank) for rank in _NAMED.findall(str(error))] == [trial.victim]
    return row


def bits_of(width: int) -> dict[str, list[int]]:
    mantissa = 7 if width == 16 else 23
    return {"sign and exponent": list(range(mantissa, width)), "mantissa": list(range(mantissa))}


def drilled(name: str, bench: Bench, trials: int, draw: random.Random) -> list[Row]:
    rows = []
    width, is_bf16 = bench.bits_of_copies, bench.config.precision is Precision.bf16
    cases: list[tuple[str, str, Callable[[Trial], None], int]] = [
        ("state", "at rest", in_memory(bench, "state", "at rest"), 32),
        ("activation", "twice", in_computation(bench, "activation"), width),
        ("gradient", "twice", in_computation(bench, "gradient"), width),
    ]
    if bench.engine.layout.zero_stage < 3 or is_bf16:
        cases.append(("copy", "copies", in_memory(bench, "copy", "copies"), width))
    if bench.engine.layout.zero_stage in (1, 2) or is_bf16:
        cases.append(("fp32 weight", "copies", in_memory(bench, "fp32 weight", "copies"), 32))
    for fault, check, attempt, bits in cases:
        for kind, places in bits_of(bits).items():
            rows.append(tried(Row(layout=name, fault=fault, check=check, bits=kind), attempt, places, trials, draw))
    return rows


def good(bench: Bench, *, checked: bool) -> tuple[list[Any], list[int]]:
    """Losses and final digests of a few steps, with all checks or none; one step is not accepted."""
    checks = CorruptionChecks(CorruptionConfig(at_rest_every_steps=1), bench.processes)
    seen: list[Any] = []
    digests: list[int] = []
    for number in range(GOOD_STEPS):

        def accept(_loss: float, number: int = number) -> bool:
            if checked:
                checks.before_update(bench.engine)
            return number != REFUSED

        result = bench.step(number, StepInstructions(accept=accept, twice=checked))
        seen.append([result.loss, result.grad_norm, result.skipped])
        if result.skipped:
            assert bench.digest() == digests, "a step that was not accepted changed something"
        if checked:
            checks.after_update(bench.engine, number + 1)
            checks.before_save(bench.engine)
        digests = bench.digest()
    return seen, digests


def examine(name: str, processes: ProcessGroup, trials: int, seed: int) -> dict[str, Any]:
    bench = Bench(LAYOUTS[name], processes)
    expected = good(bench, checked=False)
    bench.start_over()
    got = good(bench, checked=True)
    rows = drilled(name, bench, trials, random.Random(f"{seed}/{name}"))
    restored = bench.digest() == got[1]
    bench.engine.close()
    return {
        "layout": name,
        "same_numbers": processes.agree(got == expected),
        "restored": processes.agree(restored),
        "steps": got[0],
        "rows": [asdict(row) for row in rows],
    }


def main(output: Path, trials: int, seed: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    processes = start(timeout_seconds=120)
    found = [examine(name, processes, trials, seed) for name in names]
    if processes.rank == 0:
        output.write_text(json.dumps(found))
    processes.agree(True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    leave()

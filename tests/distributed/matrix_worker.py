"""One rank of the equivalence matrix: trains its cells one after the other and compares them with plain torch.

python -m tests.distributed.matrix_worker OUTPUT.json FOLDER all|covering
"""

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from operator import sub
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.distributed.configs import EXPERTS, STAGE, micro_batches, small_config
from tests.distributed.ending import leave
from tests.distributed.engine_checks import progress_at, save
from tests.distributed.matrix_cells import NUM_BLOCKS, Cell, all_cells, covering_cells
from tests.distributed.reference import first_gradients, routing_numbers, train_plain
from training.checkpoint.load import CheckpointReader
from training.config.schema import OptimizerConfig, PipelineEngineKind, PipelineSchedule, Recompute, RunConfig
from training.engine import chunk, pipeline, zero
from training.engine.base import Engine, StepResult
from training.engine.build import build_engine
from training.engine.optimizer import adamw
from training.engine.process_group import ProcessGroup, start

NUM_STEPS = 6
LRS = {"adamw": [1.5e-3] * NUM_STEPS, "sgd": [0.3] * NUM_STEPS}
HUGE_LR = 1e4
"""With it the rounding of weights is nothing beside one SGD update, so the update tells the gradient."""


def sgd(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, shared: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """SGD over the same parameter groups as AdamW's, without weight decay."""
    groups = adamw(config, parameters, shared=shared).param_groups
    return torch.optim.SGD([group | {"weight_decay": 0.0} for group in groups], lr=1.0)


def config_of(cell: Cell) -> RunConfig:
    """The run of a cell."""
    interleaved = cell.schedule == "interleaved"
    config = small_config(
        world_size=cell.world_size,
        pipeline=cell.pipeline,
        zero_stage=cell.zero_stage,
        sequence=cell.sequence,
        expert=cell.expert,
        tied=cell.model == "tied",
        experts=EXPERTS if cell.model == "experts" else None,
        micro_batch=cell.micro_batch,
        recompute=Recompute(cell.recompute),
        schedule=PipelineSchedule(cell.schedule),
        chunks_per_rank=2 if interleaved else 1,
        pipeline_engine=PipelineEngineKind.deepspeed if cell.engine == "deepspeed" else PipelineEngineKind.autarky,
    )
    return replace(config, model=replace(config.model, num_layers=NUM_BLOCKS))


def train(cell: Cell, processes: ProcessGroup, folder: Path) -> dict[str, Any]:
    """Return losses and norms of a cell, and (of SGD cells) the gradients of its first step."""
    make, name = sgd if cell.optimizer == "sgd" else adamw, "build_optimizer"
    with patch.object(chunk, name, make), patch.object(zero, name, make), patch.object(pipeline, name, make):
        engine = build_engine(config_of(cell), STAGE, processes)
    gradients = gradients_of_first_step(cell, engine, processes, folder) if cell.optimizer == "sgd" else {}
    results = [one_step(cell, engine, step, lr) for step, lr in enumerate(LRS[cell.optimizer])]
    engine.close()
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "gradients": gradients,
        **routing_numbers([result.routing for result in results]),
    }


def one_step(cell: Cell, engine: Engine, step: int, lr: float) -> StepResult:
    """One optimizer step of a cell."""
    rank = torch.distributed.get_rank()
    replica = engine.layout.replica_of(rank)
    batches = micro_batches(step, replica=replica, num_replicas=cell.data, micro_batch=cell.micro_batch)
    return engine.train_batch(batches, lr=lr)


def gradients_of_first_step(cell: Cell, engine: Engine, processes: ProcessGroup, folder: Path) -> dict[str, Tensor]:
    """Return the (clipped) gradient of every parameter of the whole model, from what one huge SGD step changes.

    It is read from checkpoints, which any rank can read whole, so every pipeline stage is compared.
    """
    before = save(engine, processes, folder / "before", progress_at(0))
    one_step(cell, engine, 0, HUGE_LR)
    after = save(engine, processes, folder / "after", progress_at(1))
    engine.load(before)
    readers = [CheckpointReader(path) for path in (before, after)]
    shapes = {tensor: pieces[0].shape for tensor, pieces in readers[0].manifest.tensors().items()}
    gradients = {}
    for tensor, shape in shapes.items():
        kind, _, parameter = tensor.partition("/")
        if kind == "weight" and not parameter.endswith(".gate.bias"):  # no gradient moves that one
            old, new = (torch.from_numpy(reader.read(tensor, 0, torch.Size(shape).numel())) for reader in readers)
            gradients[parameter] = ((old.double() - new.double()) / HUGE_LR).view(shape)
    return gradients


def compare(found: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """Return the largest relative differences of losses, norms, and of any one parameter's gradient (L2)."""

    def of_numbers(kind: str) -> float:
        return max(abs(one - other) / abs(other) for one, other in zip(found[kind], plain[kind], strict=True))

    errors = {kind: of_numbers(kind) for kind in ("losses", "norms", "auxiliary") if kind in plain}
    if "loads" in plain:  # tokens that went to another expert, as a share
        pairs = zip(found["loads"], plain["loads"], strict=True)
        errors["loads"] = max(sum(map(abs, map(sub, one, other))) / sum(other) for one, other in pairs)
    if found["gradients"]:
        assert found["gradients"].keys() == plain["gradients"].keys()
        errors["gradients"] = max(
            ((found["gradients"][name] - gradient).norm() / gradient.norm()).item()
            for name, gradient in plain["gradients"].items()
        )
    return errors


def plain_run(cell: Cell) -> dict[str, Any]:
    """What a cell must give: one process, no engine, the whole batch at once."""
    config = replace(config_of(cell), cluster=replace(config_of(cell).cluster, processes_per_node=1))
    run = train_plain(config, LRS[cell.optimizer], optimizer=cell.optimizer)
    return {**run, "gradients": first_gradients(config) if cell.optimizer == "sgd" else {}}


def main(output: Path, folder: Path, which: str) -> None:
    """Run all cells of this world size."""
    processes = start(60)
    truths: dict[tuple[str, str], dict[str, Any]] = {}
    lines = []
    for cell in all_cells() if which == "all" else covering_cells():
        if cell.world_size != processes.world_size:
            continue
        key = (cell.model, cell.optimizer)
        if processes.rank == 0 and key not in truths:
            truths[key] = plain_run(cell)
        found = train(cell, processes, folder)
        if processes.rank == 0:
            errors = compare(found, truths[key])
            lines.append({"cell": asdict(cell), "errors": errors})
            print(cell.name, {kind: f"{error:.1e}" for kind, error in errors.items()}, flush=True)
            for name in ("before", "after"):
                shutil.rmtree(folder / name, ignore_errors=True)
        processes.agree(True)  # the folders are gone before the next cell writes
    if processes.rank == 0:
        output.write_text(json.dumps(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    leave()

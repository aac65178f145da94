"""Where the time of a pipeline's step goes, for every contestant: python -m benchmarks.profile_pipeline [--steps N].

What a step is made of is marked by its functions; nothing else is changed. Time counts for the innermost marked
function it is spent in, so a row holds no other row's time and the rows add up to the step. Processor time is
the main thread's, summed over the ranks: other work on the machine hardly moves it. Wall time is the mean over ranks.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.contests import PIPELINES
from benchmarks.crew import free_port, kill, rank_environment, rendezvous
from benchmarks.rank import contestant
from benchmarks.tables import table
from training.config.load import compose
from training.data.prepare import ensure

_REST = "the rest: data, token count, the schedule itself"
_OTHER_THREADS = "other threads: gloo"
_OURS: dict[str, tuple[str, ...]] = {
    "forward": ("training.engine.chunk:Chunk.forward", "training.engine.pipeline_step:summed_loss"),
    "backward": ("torch.autograd:backward", "deepspeed.runtime.pipe.engine:PipelineEngine._exec_backward_pass"),
    "gather weights": (
        "training.engine.chunk:hold_weights",
        "deepspeed.runtime.zero.partition_parameters:AllGatherHandle.wait",
        "deepspeed.runtime.zero.partition_parameters:AllGatherCoalescedHandle.wait",
        "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator"
        "._PartitionedParameterCoordinator__all_gather_params",
    ),
    "reduce gradients": (
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.reduce_ready_partitions_and_remove_grads",
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.independent_gradient_partition_epilogue",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.reduce_ready_partitions_and_remove_grads",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.reduce_gradients",
        "deepspeed.runtime.engine:DeepSpeedEngine.allreduce_gradients",
    ),
    "send, receive, wait for it": (
        "training.engine.links:Links.send",
        "training.engine.links:Links.receive",
        "training.engine.links:Links.take",
        "training.engine.links:Links.finish",
        "deepspeed.runtime.pipe.p2p:send",
        "deepspeed.runtime.pipe.p2p:recv",
    ),
    "hooks around layers": (
        "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator.fetch_sub_module",
        "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator.release_sub_module",
    ),
    "tied weights, norm, clipping": ("training.engine.global_gradient:GlobalGradient.reduce",),
    "optimizer step": (
        "training.engine.pipeline_zero:PipelineZeroEngine._update",
        "deepspeed.runtime.engine:DeepSpeedEngine._take_model_step",
    ),
}
"""Part of a step -> functions, as module:name, under DeepSpeed."""
_TORCH: dict[str, tuple[str, ...]] = {
    "forward": (
        "torch.distributed.pipelining.stage:_PipelineStageBase.forward_one_chunk",
        "benchmarks.fsdp2_pipeline:summed_cross_entropy",
    ),
    "backward": ("torch.distributed.pipelining.stage:_PipelineStageBase.backward_one_chunk",),
    "gather weights": (
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.unshard",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.wait_for_unshard",
    ),
    "reduce gradients": ("torch.distributed.pipelining.stage:_PipelineStageBase.perform_reduce_grad",),
    "send, receive, wait for it": (
        "torch.distributed.pipelining.schedules:_batch_p2p",
        "torch.distributed.pipelining.schedules:_wait_batch_p2p",
    ),
    "hooks around layers": (
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.pre_forward",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.post_forward",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.pre_backward",
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup.post_backward",
    ),
    "tied weights, norm, clipping": ("benchmarks.fsdp2_pipeline:_clip", "benchmarks.fsdp2_pipeline:dist.all_reduce"),
    "optimizer step": ("torch.optim.adamw:AdamW.step",),
}
"""The same of torch's pipeline."""
_PARTS = {"autarky": _OURS, "fsdp2_pipeline": _TORCH}
_TIMEOUT_SECONDS = 600.0


class Clock:
    """Divides the main thread's time among the parts of a step."""

    def __init__(self) -> None:
        self._running = [_REST]
        self.reset()

    def reset(self) -> None:
        """Forget what was measured so far."""
        self.wall_seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self._wall, self._cpu, self._process = time.perf_counter(), time.thread_time(), time.process_time()
        self._process_started, self._thread_started = self._process, self._cpu

    def stop(self) -> None:
        """Close the last span, and add the processor time that other threads took."""
        self._switch()
        of_process, of_thread = time.process_time() - self._process_started, self._cpu - self._thread_started
        self.cpu_seconds[_OTHER_THREADS] = of_process - of_thread

    def mark(self, part: str, function: str) -> None:
        """Count the time inside of a function, named as module:name, for a part of the step."""
        module, _, path = function.partition(":")
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for inner in owners:
            owner = getattr(owner, inner)
        setattr(owner, name, self._around(part, getattr(owner, name)))

    def _around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return marked

    def _switch(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        self.wall_seconds[self._running[-1]] += wall - self._wall
        self.cpu_seconds[self._running[-1]] += cpu - self._cpu
        self._wall, self._cpu = wall, cpu


class _Profiled:
    """Lets a contestant train a number of steps under the clock, writes what they took and ends the process."""

    def __init__(self, clock: Clock, path: Path, *, warm_up_steps: int, num_steps: int) -> None:
        self._clock = clock
        self._path = path
        self._warm_up_steps = warm_up_steps
        self._num_steps = num_steps
        self._done = 0

    def open(self, reference_seconds: float = 0.0) -> None:
        """Nothing to wait for."""

    def after_step(self, loss_share: float, bubble: float | None = None) -> None:
        """Count a step; end after the last one."""
        self._done += 1
        if self._done == self._warm_up_steps:
            dist.barrier()
            self._clock.reset()
        elif self._done == self._warm_up_steps + self._num_steps:
            self._clock.stop()
            self._path.write_text(json.dumps({"wall": self._clock.wall_seconds, "cpu": self._clock.cpu_seconds}))
            dist.barrier()
            os._exit(0)


def main() -> None:
    """Profile all contestants of the pipeline contest, one after the other, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_pipeline", description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are measured (default 10)")
    parser.add_argument("--warm-up-steps", type=int, default=4, help="steps before them (default 4)")
    parser.add_argument("--rank", nargs=2, metavar=("MODULE", "FILE"), help="used by this command itself")
    arguments, overrides = parser.parse_known_args()
    if arguments.rank:
        module, path = arguments.rank
        _run_rank(module, path, overrides, warm_up_steps=arguments.warm_up_steps, num_steps=arguments.steps)
        return
    with tempfile.TemporaryDirectory(prefix="autarky-profile-") as directory:
        root = Path(directory)
        shared = ["experiment=demo", f"data.prepared_root={root / 'prepared'}", *overrides, *PIPELINES.overrides]
        ensure(compose(shared).data)
        for title, (module, layout) in PIPELINES.contestants.items():
            ranks = _run(module, [*shared, *layout], root, steps=arguments.steps, warm_up_steps=arguments.warm_up_steps)
            print("\n".join([f"\n## {title}\n", *_shares(ranks, arguments.steps)]), flush=True)


def _run_rank(module: str, path: str, overrides: Sequence[str], *, warm_up_steps: int, num_steps: int) -> None:
    clock = Clock()
    for part, functions in _PARTS[module].items():
        for function in functions:
            clock.mark(part, function)
    config = compose(overrides)
    steps = _Profiled(clock, Path(path), warm_up_steps=warm_up_steps, num_steps=num_steps)
    contestant(module)(config, next(iter(config.stages)), steps)


def _run(
    module: str, overrides: Sequence[str], root: Path, *, steps: int, warm_up_steps: int
) -> list[dict[str, dict[str, float]]]:
    """Return what every rank measured.

    Raises:
        RuntimeError: a rank ended with an error.
    """
    port = free_port()
    options = ["--steps", str(steps), "--warm-up-steps", str(warm_up_steps)]
    paths = [root / f"{rank}.json" for rank in range(PIPELINES.num_ranks)]
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log:
        try:
            for rank, path in enumerate(paths):
                command = [sys.executable, "-m", "benchmarks.profile_pipeline", "--rank", module, str(path)]
                environment = rank_environment() | rendezvous(rank, port, len(paths))
                ranks.append(
                    subprocess.Popen(
                        [*command, *options, *overrides],
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            for process in ranks:
                if process.wait(_TIMEOUT_SECONDS):
                    log.seek(0)
                    raise RuntimeError(f"{module}: a rank ended\n{log.read()[-3000:].decode(errors='replace')}")
        finally:
            for process in ranks:
                kill(process)
    return [json.loads(path.read_text()) for path in paths]


def _shares(ranks: Sequence[Mapping[str, Mapping[str, float]]], num_steps: int) -> list[str]:
    cpu, wall = (
        {part: sum(rank[kind].get(part, 0.0) for rank in ranks) / num_steps for part in [*_OURS, _REST, _OTHER_THREADS]}
        for kind in ("cpu", "wall")
    )
    wall = {part: seconds / len(ranks) for part, seconds in wall.items()}
    total_cpu, total_wall = sum(cpu.values()), sum(wall.values())
    rows = [
        [part, f"{1000 * cpu[part]:.0f}", f"{100 * cpu[part] / total_cpu:.0f}"]
        + ([f"{1000 * wall[part]:.0f}", f"{100 * wall[part] / total_wall:.0f}"] if wall[part] else ["-", "-"])
        for part in cpu
    ]
    rows.append(["all", f"{1000 * total_cpu:.0f}", "100", f"{1000 * total_wall:.0f}", "100"])
    return table(["part of a step", "CPU ms, all ranks", "%", "wall ms, mean", "%"], rows)


if __name__ == "__main__":
    main()

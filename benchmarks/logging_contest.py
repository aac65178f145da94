"""What logging costs a training step: real runs of the demo's first training stage that log in every other block of it.

So each block that logs has neighbours that do not, on the same machine seconds before and after, and their ratio is
free of what makes two runs differ. Wandb's server is one on loopback (tests/wandb_server.py) in the process that
measures: it has a share of this machine's cores too.
"""

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from scipy.stats import t as student_t

from benchmarks.crew import kill
from benchmarks.logging_rank import BLOCK_STEPS, FILE_NAME, WARM_UP_BLOCKS, is_on
from benchmarks.tables import table
from launch.local import environment, launcher_command
from tests.wandb_server import WandbServer
from training.config.load import compose
from training.config.run_directory import create
from training.reporting.metrics import FILE_NAME as METRICS_NAME
from training.reporting.metrics import read_metrics
from training.reporting.records import StepRecord

_POLL_SECONDS = 0.5
_LIMIT_SECONDS = 3600.0
_NUM_RANKS = 2
_TOKENS_PER_STEP = 16 * 128
_GOAL = 1.01
_CONFIDENCE = 0.95

_DEFAULTS = ["reporting.layers_every_steps=100", "reporting.experts_every_steps=50", "reporting.memory_every_steps=50"]
"""The demo, which is short, has smaller intervals."""
_ONLINE = ["reporting.wandb.mode=online"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """Settings, and what the server does."""

    overrides: Sequence[str]
    at_start: Callable[[WandbServer], None] = WandbServer.answer
    half_way: Callable[[WandbServer], None] = WandbServer.answer


_STATES: Mapping[str, _State] = {
    "wandb disabled": _State(overrides=["reporting.wandb.mode=disabled"]),
    "wandb offline": _State(overrides=["reporting.wandb.mode=offline"]),
    "wandb online, the server answers": _State(overrides=_ONLINE),
    "… the server never answers": _State(overrides=_ONLINE, at_start=WandbServer.stall, half_way=WandbServer.stall),
    "… the server is killed mid-run": _State(overrides=_ONLINE, half_way=WandbServer.die),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One run."""

    block_seconds: list[float]
    """Wall time of each block of BLOCK_STEPS steps, warm-up left out; the first is off, the next on, and so on."""
    block_cpu_seconds: list[float]
    """Processor time of ranks and wandb's processes in each, together."""
    wandb_cpu_seconds: float
    """Processor time of wandb's processes, their start too."""
    is_whole: bool
    """Whether the run was done and every step of blocks that log is in metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingContest:
    """All states."""

    num_pairs: int
    turns: dict[str, Turn]


def mean_ratio(blocks: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean over blocks that log of theirs over the mean of the two beside them, and its 95 % interval."""
    ratios = [
        blocks[number] / statistics.fmean((blocks[number - 1], blocks[number + 1]))
        for number in range(1, len(blocks) - 1, 2)
    ]
    mean = statistics.fmean(ratios)
    if len(ratios) < 2:
        return mean, -math.inf, math.inf
    deviation = statistics.stdev(ratios) / math.sqrt(len(ratios))
    half = float(student_t.ppf((1 + _CONFIDENCE) / 2, len(ratios) - 1)) * deviation
    return mean, mean - half, mean + half


def compete_in_logging(root: Path, *, num_pairs: int, say: Callable[[str], None]) -> LoggingContest:
    """Return what logging costs in every state of wandb's server.

    Args:
        root: an empty folder.
        num_pairs: blocks that log, in a run.
        say: is told what is done.

    Raises:
        RuntimeError: a run did not come to its end.
    """
    turns = {}
    for name, state in _STATES.items():
        say(f"logging: {name}")
        turns[name] = _run(root, state, num_pairs)
    return LoggingContest(num_pairs=num_pairs, turns=turns)


def _run(root: Path, state: _State, num_pairs: int) -> Turn:
    num_blocks = 1 + WARM_UP_BLOCKS + 2 * num_pairs + 1  # the end of the first one is where the clock begins
    num_steps = num_blocks * BLOCK_STEPS
    overrides = [
        "experiment=demo",
        f"run.root={root / 'runs'}",
        "run.until=pretrain",
        f"stages.pretrain.tokens={num_steps * _TOKENS_PER_STEP}",
        "stages.pretrain.eval_suite=null",
        "stages.pretrain.gate=null",
        "stages.anneal.gate=null",
        "eval.at_start=false",
        "checkpoint.every_steps=1000000",
        f"cluster.processes_per_node={_NUM_RANKS}",
        *_DEFAULTS,
        *state.overrides,
    ]
    config = compose(overrides)
    run = create(config, overrides)
    command = [*launcher_command(run, config)[:-2], "benchmarks.logging_rank", str(run)]
    cpu_seconds, is_late, deadline = 0.0, False, time.monotonic() + _LIMIT_SECONDS
    with WandbServer() as server, (root / "output").open("wb") as output:
        state.at_start(server)
        variables = environment(run, config) | server.environment()
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                cpu_seconds = max(cpu_seconds, _cpu_seconds_of_wandb(process.pid))
                if not is_late and len(_blocks(run)) > num_blocks // 2:
                    is_late = True
                    state.half_way(server)
                if time.monotonic() > deadline:
                    break
        finally:
            kill(process)
    if process.returncode != 0:
        raise RuntimeError(f"{run} ended with {process.returncode}: {(root / 'output').read_text()[-3000:]}")
    steps = [record.step for record in read_metrics(run / METRICS_NAME).records if isinstance(record, StepRecord)]
    return Turn(
        block_seconds=[wall for wall, _ in _blocks(run)[WARM_UP_BLOCKS:]],
        block_cpu_seconds=[cpu for _, cpu in _blocks(run)[WARM_UP_BLOCKS:]],
        wandb_cpu_seconds=cpu_seconds,
        is_whole=steps == [step for step in range(1, num_steps + 1) if is_on(step)],
    )


def _blocks(run: Path) -> list[tuple[float, float]]:
    try:
        return json.loads((run / FILE_NAME).read_text())
    except (FileNotFoundError, ValueError):  # not there yet, or half written
        return []


def _cpu_seconds_of_wandb(launcher: int) -> float:
    """Return the processor time that wandb's processes have used so far."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "wandb" in " ".join(process.cmdline()):
                    times = process.cpu_times()
                    total += times.user + times.system
    return total


def logging(contest: LoggingContest) -> list[str]:
    """Return the page's section."""
    rows = []
    for name, turn in contest.turns.items():
        ratio, cpu = mean_ratio(turn.block_seconds), mean_ratio(turn.block_cpu_seconds)
        off = statistics.median(turn.block_seconds[::2]) / BLOCK_STEPS
        rows.append(
            [
                name,
                f"{1000 * off:,.1f}",
                _interval(ratio),
                _verdict(ratio),
                _interval(cpu),
                f"{turn.wandb_cpu_seconds:.1f}",
                "yes" if turn.is_whole else "NO",
            ]
        )
    heads = ["", "ms per step, off", "on ÷ off", "below 1 % more", "CPU time, on ÷ off", "CPU s of wandb", "log whole"]
    return [
        "## Logging",
        "",
        f"The demo's first training stage, ZeRO-3 on {_NUM_RANKS} processes, no checkpoint, no evaluation; one run a "
        f"row, which logs in every other block of {BLOCK_STEPS} steps: {contest.num_pairs} blocks on, each beside two "
        "that are off. On: all records, terminal, wandb, statistics of layers every 100 and of memory every 50 steps "
        "of those that log, the forecast. Off: nothing of it, and wandb's processes stand still.",
        "",
        *table(heads, rows),
        "",
        "- on ÷ off: the mean over the blocks that log of their wall time over that of their two neighbours, and its "
        "95 % confidence interval. CPU time, of ranks and wandb's processes together, likewise.",
        "- CPU s of wandb: processor time of its processes in the run, which take a second or so to start; they have a "
        "low priority, and here no core of their own.",
        f"- Goal: below {_GOAL}. Met if the whole interval is below, missed if all of it is above; else this machine "
        "was not quiet enough, or the run too short, to tell.",
    ]


def _interval(ratio: tuple[float, float, float]) -> str:
    mean, low, high = ratio
    return f"{mean:.4f} ({low:.4f}–{high:.4f})"


def _verdict(ratio: tuple[float, float, float]) -> str:
    _, low, high = ratio
    return "met" if high < _GOAL else "missed" if low >= _GOAL else "cannot tell"

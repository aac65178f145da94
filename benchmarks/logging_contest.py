"""What logging costs a training step: real runs of the demo's first training stage, timed in two ways (logging_rank).

By parts, which are small times measured exactly: their sum is what it costs where no core is free for what runs beside
training, the most that it can be. And by blocks of steps that log beside blocks that do not, which holds all effects,
and the machine's noise. Wandb's server is one on loopback (tests/wandb_server.py) in the process that measures.
"""

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student_t

from benchmarks.crew import kill
from benchmarks.logging_rank import BLOCK_STEPS, FILE_NAME, WARM_UP_BLOCKS, Timed, is_on
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
_GOAL = 0.01
_CONFIDENCE = 0.95

_LAYERS_EVERY = 100
_DEFAULTS = [
    f"reporting.layers_every_steps={_LAYERS_EVERY}",
    "reporting.experts_every_steps=50",
    "reporting.memory_every_steps=50",
]
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
_LAYERS = _State(overrides=["reporting.wandb.mode=disabled", "reporting.layers_every_steps=2"])
"""In which every other step measures layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One run."""

    timed: Timed
    num_steps_on: int
    """Steps after the warm-up in blocks that log."""
    is_whole: bool
    """Whether the run was done and every step of blocks that log is in metrics.jsonl."""

    @property
    def step_seconds(self) -> float:
        """Return the median wall time of a step in blocks that do not log."""
        return statistics.median(self.timed.block_seconds[::2]) / BLOCK_STEPS


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingContest:
    """All states."""

    num_pairs: int
    layers_seconds: float
    """What a step takes longer that measures layers."""
    turns: dict[str, Turn]

    def parts(self, state: str) -> list[float]:
        """Return the seconds of a step: of the training thread, beside it, and for layers by their default interval."""
        turn = self.turns[state]
        return [
            turn.timed.in_training_thread / turn.num_steps_on,
            turn.timed.beside / turn.num_steps_on,
            self.layers_seconds / _LAYERS_EVERY,
        ]


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
    say("logging: layers")
    layers = _run(root, _LAYERS, num_pairs).timed
    layers_seconds = statistics.median(layers.measured_steps) - statistics.median(layers.plain_steps)
    turns = {}
    for name, state in _STATES.items():
        say(f"logging: {name}")
        turns[name] = _run(root, state, num_pairs)
    return LoggingContest(num_pairs=num_pairs, layers_seconds=layers_seconds, turns=turns)


def _run(root: Path, state: _State, num_pairs: int) -> Turn:
    num_blocks = 1 + WARM_UP_BLOCKS + 2 * num_pairs + 1  # the clock begins at the end of the first one
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
    is_late, deadline = False, time.monotonic() + _LIMIT_SECONDS
    with WandbServer() as server, (root / "output").open("wb") as output:
        state.at_start(server)
        variables = environment(run, config) | server.environment()
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                if not is_late and len(_timed(run).block_seconds) > num_blocks // 2:
                    is_late = True
                    state.half_way(server)
                if time.monotonic() > deadline:
                    break
        finally:
            kill(process)
    if process.returncode != 0:
        raise RuntimeError(f"{run} ended with {process.returncode}: {(root / 'output').read_text()[-3000:]}")
    steps = [record.step for record in read_metrics(run / METRICS_NAME).records if isinstance(record, StepRecord)]
    first = (WARM_UP_BLOCKS + 1) * BLOCK_STEPS
    return Turn(
        timed=_timed(run),
        num_steps_on=sum(map(is_on, range(first + 1, num_steps + 1))),
        is_whole=steps == [step for step in range(1, num_steps + 1) if is_on(step)],
    )


def _timed(run: Path) -> Timed:
    try:
        return Timed(**json.loads((run / FILE_NAME).read_text()))
    except (FileNotFoundError, ValueError):  # not there yet, or half written
        return Timed()


def logging(contest: LoggingContest) -> list[str]:
    """Return the page's section."""
    rows = []
    for name, turn in contest.turns.items():
        parts = contest.parts(name)
        share = sum(parts) / turn.step_seconds
        rows.append(
            [
                name,
                f"{1000 * turn.step_seconds:,.0f}",
                *(f"{1000 * seconds:.2f}" for seconds in parts),
                f"{100 * share:.2f} %",
                "met" if share < _GOAL else "missed",
                "{:.3f} ({:.3f}–{:.3f})".format(*mean_ratio(turn.timed.block_seconds)),
                "yes" if turn.is_whole else "NO",
            ]
        )
    heads = ["", "ms per step, off", "+ training thread", "+ beside it", "+ layers", "sum", "below 1 %"]
    heads += ["by blocks, on ÷ off", "log whole"]
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
        "- Training thread: its time in records, statistics of memory and the forecast. Beside it: processor time of "
        "the threads that write and show records and of wandb's processes; where cores are free it costs training "
        "nothing, here both are the ranks'. Layers: what a step that measures them takes longer "
        f"({1000 * contest.layers_seconds:.1f} ms, of a run where every other one does), over {_LAYERS_EVERY} steps.",
        "- By blocks: the mean over the blocks that log of their wall time over that of their two neighbours, and its "
        "95 % confidence interval: all effects together, and this machine's noise.",
        f"- Goal: a sum below {100 * _GOAL:.0f} % of a step.",
    ]

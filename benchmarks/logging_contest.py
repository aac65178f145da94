"""What logging costs a training step: the demo's first training stage with everything off, and with it in each state.

Real runs, one after the other, in turns; their ranks are forked, so that a start takes seconds. Wandb's server is one
on loopback (tests/wandb_server.py) in the process that measures: it has a share of this machine's cores too.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.tables import spread, table
from tests.drills.starts import ForkServer
from tests.wandb_server import WandbServer
from training.config.load import compose
from training.config.run_directory import create
from training.reporting.metrics import FILE_NAME, read_metrics
from training.reporting.records import StepRecord

_WARM_UP_STEPS = 5
_POLL_SECONDS = 0.5
_LIMIT_SECONDS = 900.0
_NUM_RANKS = 2
_TOKENS_PER_STEP = 16 * 128
_GOAL = 1.01

OFF = "everything off"
_NO_STATISTICS = [
    "reporting.layers_every_steps=0",
    "reporting.experts_every_steps=0",
    "reporting.memory_every_steps=0",
    "reporting.forecast.every_steps=0",
]
_ONLINE = ["reporting.wandb.mode=online"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """One contestant: settings, and what its server does."""

    overrides: Sequence[str]
    at_start: Callable[[WandbServer], None] = WandbServer.answer
    half_way: Callable[[WandbServer], None] = WandbServer.answer


_STATES: Mapping[str, _State] = {
    OFF: _State(overrides=["reporting.wandb.mode=disabled", *_NO_STATISTICS]),
    "default intervals, wandb offline": _State(overrides=["reporting.wandb.mode=offline"]),
    "wandb online, the server answers": _State(overrides=_ONLINE),
    "… the server never answers": _State(overrides=_ONLINE, at_start=WandbServer.stall, half_way=WandbServer.stall),
    "… the server is killed mid-run": _State(overrides=_ONLINE, half_way=WandbServer.die),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One run."""

    step_seconds: list[float]
    """From a step's end to the next one's, less what has a section of its own; warm-up steps left out."""
    wandb_cpu_seconds: float
    """Processor time of wandb's processes, their start too."""
    is_whole: bool
    """Whether the run was done and every step is in metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingContest:
    """All turns, state by state."""

    num_steps: int
    """Of a turn, less the warm-up."""
    turns: dict[str, list[Turn]]

    def medians(self, state: str) -> list[float]:
        """Return the median seconds of a step, turn by turn."""
        return [statistics.median(turn.step_seconds) for turn in self.turns[state]]

    def ratios(self, state: str) -> list[float]:
        """Return a state's median step over that with everything off, round by round."""
        return [its / off for its, off in zip(self.medians(state), self.medians(OFF), strict=True)]

    def total_ratios(self, state: str) -> list[float]:
        """Return the same of all steps together, slow ones too."""
        pairs = zip(self.turns[state], self.turns[OFF], strict=True)
        return [sum(its.step_seconds) / sum(off.step_seconds) for its, off in pairs]


def compete_in_logging(root: Path, *, num_rounds: int, num_steps: int, say: Callable[[str], None]) -> LoggingContest:
    """Return what every state costs.

    Args:
        root: an empty folder.
        num_rounds: turns of each state; which is first moves on with every round.
        num_steps: of a turn, less the warm-up.
        say: is told what is done.

    Raises:
        RuntimeError: a run did not come to its end.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in _STATES}
    with ForkServer() as forks:
        for number in range(num_rounds):
            names = list(_STATES)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                say(f"logging, round {number + 1} of {num_rounds}: {name}")
                turns[name].append(_run(forks, root, _STATES[name], num_steps + _WARM_UP_STEPS))
    return LoggingContest(num_steps=num_steps, turns=turns)


def _run(forks: ForkServer, root: Path, state: _State, num_steps: int) -> Turn:
    overrides = [
        "experiment=demo",
        f"data.prepared_root={root / 'prepared'}",
        f"run.root={root / 'runs'}",
        "run.until=pretrain",
        f"stages.pretrain.tokens={num_steps * _TOKENS_PER_STEP}",
        "stages.pretrain.eval_suite=null",
        "stages.pretrain.gate=null",
        "stages.anneal.gate=null",
        "eval.at_start=false",
        "checkpoint.every_steps=1000000",
        *state.overrides,
    ]
    run = create(compose(overrides), overrides)
    with WandbServer() as server:
        state.at_start(server)
        environment = server.environment()
        started = forks.start(run, world_size=_NUM_RANKS, output=root / "output", environment=environment)
        cpu_seconds, is_late = 0.0, False
        for _ in range(round(_LIMIT_SECONDS / _POLL_SECONDS)):
            if not forks.wait(_POLL_SECONDS).processes:
                break
            cpu_seconds = max(cpu_seconds, _cpu_seconds(started.ranks[0]))
            if not is_late and _last_step(run) > num_steps // 2:
                is_late = True
                state.half_way(server)
        else:
            forks.kill_all()
            raise RuntimeError(f"{run}: not done after {_LIMIT_SECONDS:.0f} s")
        started.close()
    return _turn(run, num_steps, cpu_seconds)


def _turn(run: Path, num_steps: int, cpu_seconds: float) -> Turn:
    metrics = read_metrics(run / FILE_NAME)
    steps = [record for record in metrics.records if isinstance(record, StepRecord)]
    if not steps:
        raise RuntimeError(f"{run}: no step came")
    return Turn(
        step_seconds=[step.seconds + (step.other_seconds or 0.0) for step in steps[_WARM_UP_STEPS:]],
        wandb_cpu_seconds=cpu_seconds,
        is_whole=[step.step for step in steps] == list(range(1, num_steps + 1)),
    )


def _last_step(run: Path) -> int:
    if not (run / FILE_NAME).exists():
        return 0
    return max((r.step for r in read_metrics(run / FILE_NAME).records if isinstance(r, StepRecord)), default=0)


def _cpu_seconds(rank: int) -> float:
    """Return the processor time that a rank's children have used so far, which are wandb's processes."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(rank).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def logging(contest: LoggingContest) -> list[str]:
    """Return the page's section."""
    rows = [
        [
            name,
            spread([1000 * seconds for seconds in contest.medians(name)], ",.1f"),
            spread(contest.ratios(name), ".3f"),
            spread(contest.total_ratios(name), ".3f"),
            spread([turn.wandb_cpu_seconds for turn in turns], ".1f"),
            _verdict(contest, name),
            "yes" if all(turn.is_whole for turn in turns) else "NO",
        ]
        for name, turns in contest.turns.items()
    ]
    heads = ["", "ms per step", "it ÷ off", "all steps, it ÷ off", "CPU s of wandb", "below 1 % more", "log whole"]
    num_rounds = len(contest.turns[OFF])
    return [
        "## Logging",
        "",
        f"The demo's first training stage, ZeRO-3 on {_NUM_RANKS} processes, no checkpoint, no evaluation; "
        f"{num_rounds} rounds, in each of which every state is a run of {contest.num_steps} steps after "
        f"{_WARM_UP_STEPS} of warm-up. Off: no wandb, no statistics of layers, experts or memory, no forecast.",
        "",
        *table(heads, rows),
        "",
        "- ms per step: the median step of a run, and the time until the next one begins. Ratios are taken within a "
        'round; "all steps" has the slow ones too, among them those beside which wandb starts.',
        "- CPU s of wandb: processor time of its processes in a run, which take a second or so to start; they have a "
        "low priority, and here no core of their own.",
        f"- Goal: a ratio of medians below {_GOAL}; met if every round's is, missed if none is. Else the rounds differ "
        "too much to tell, and more of them, more steps or a quieter machine are needed.",
    ]


def _verdict(contest: LoggingContest, name: str) -> str:
    """Return whether the goal was met, as far as the rounds agree."""
    if name == OFF:
        return "-"
    ratios = contest.ratios(name)
    return "met" if max(ratios) < _GOAL else "missed" if min(ratios) >= _GOAL else "cannot tell"

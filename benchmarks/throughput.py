"""Tokens per second of every contestant, in turns, so that other load on the machine hits all alike."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.crew import Turn, crew
from training.config.load import compose
from training.models.sizes import training_flops_per_token

FIRST = "Autarky, ZeRO-3"
"""The contestant that the others are compared with."""

_CONTESTANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    FIRST: ("autarky", ("parallel@stages.pretrain.parallel=zero3",)),
    "HF Trainer, DeepSpeed ZeRO-3": ("hf_trainer", ("parallel@stages.pretrain.parallel=zero3",)),
    "torch DDP": ("ddp", ("parallel@stages.pretrain.parallel=zero1",)),
    "Autarky, 2 pipeline stages": ("autarky", ("parallel@stages.pretrain.parallel=pipeline",)),
}
"""Title -> module of benchmarks, overrides."""

_TURN_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """All turns of all contestants."""

    tokens_per_step: int
    flops_per_token: float
    """Model FLOPs, by the conventions of training/models/sizes.py."""
    warm_ups: dict[str, Turn]
    rounds: dict[str, list[Turn]]

    def tokens_per_second(self, title: str) -> list[float]:
        """Return the rate of every turn."""
        return [self.tokens_per_step * len(turn.losses) / turn.seconds for turn in self.rounds[title]]

    def ratios(self, title: str) -> list[float]:
        """Return, round by round, FIRST's rate over this contestant's."""
        pairs = zip(self.tokens_per_second(FIRST), self.tokens_per_second(title), strict=True)
        return [first / other for first, other in pairs]

    def cpu_seconds_per_step(self, title: str) -> list[float]:
        """Return the processor seconds of all ranks per optimizer step, turn by turn."""
        return [turn.cpu_seconds / len(turn.losses) for turn in self.rounds[title]]

    def mfu(self, title: str) -> list[float]:
        """Return model FLOPs per second over the matrix-multiply rate measured around the same turn."""
        rates = zip(self.tokens_per_second(title), self.rounds[title], strict=True)
        return [self.flops_per_token * rate / turn.matmul_flops_per_second for rate, turn in rates]

    def all_turns(self) -> list[Turn]:
        """Return every turn of every contestant."""
        return [turn for turns in self.rounds.values() for turn in turns]

    def largest_loss_difference(self, title: str) -> float:
        """Return the largest relative difference of a step's loss from FIRST's, over the warm-up."""
        pairs = zip(self.warm_ups[FIRST].losses, self.warm_ups[title].losses, strict=True)
        return max(abs(other / first - 1) for first, other in pairs)


def compete(overrides: Sequence[str], *, num_rounds: int, steps_per_turn: int, warm_up_steps: int) -> Contest:
    """Return what every contestant did; all are started first, then take turns, one trains at a time."""
    config = compose([*overrides, *_CONTESTANTS[FIRST][1]])
    stage = next(iter(config.stages.values()))
    warm_ups: dict[str, Turn] = {}
    rounds: dict[str, list[Turn]] = {title: [] for title in _CONTESTANTS}
    with ExitStack() as stack:
        crews = {}
        for title, (module, layout) in _CONTESTANTS.items():
            crews[title] = stack.enter_context(crew(module, [*overrides, *layout]))
            warm_ups[title] = crews[title].turn(warm_up_steps, timeout_seconds=_TURN_TIMEOUT_SECONDS)
        for _ in range(num_rounds):
            for title, its_crew in crews.items():
                rounds[title].append(its_crew.turn(steps_per_turn, timeout_seconds=_TURN_TIMEOUT_SECONDS))
    return Contest(
        tokens_per_step=stage.global_batch_sequences * stage.sequence_length,
        flops_per_token=training_flops_per_token(config.model, stage.sequence_length),
        warm_ups=warm_ups,
        rounds=rounds,
    )

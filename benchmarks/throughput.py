"""Tokens per second of every contestant, in turns, so that other load on the machine hits all alike."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.contests import Lineup
from benchmarks.crew import Turn, crew
from training.config.load import compose
from training.config.schema import RunConfig
from training.models.sizes import training_flops_per_token

_TURN_TIMEOUT_SECONDS = 300.0
SAME_LOSS = 1e-4
"""Largest relative difference of losses at which two contestants train the same thing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """All turns of all contestants."""

    first: str
    """Title of the contestant that the others are compared with."""
    num_ranks: int
    config: RunConfig
    """The first contestant's."""
    training_stage: str
    tokens_per_step: int
    flops_per_token: float
    """Model FLOPs, by the conventions of training/models/sizes.py."""
    warm_ups: dict[str, Turn]
    rounds: dict[str, list[Turn]]

    def tokens_per_second(self, title: str) -> list[float]:
        """Return the rate of every turn."""
        return [self.tokens_per_step * len(turn.losses) / turn.seconds for turn in self.rounds[title]]

    def ratios(self, title: str) -> list[float]:
        """Return, round by round, the first contestant's rate over this one's."""
        pairs = zip(self.tokens_per_second(self.first), self.tokens_per_second(title), strict=True)
        return [first / other for first, other in pairs]

    def cpu_seconds_per_step(self, title: str) -> list[float]:
        """Return the processor seconds of all ranks per optimizer step, turn by turn."""
        return [turn.cpu_seconds / len(turn.losses) for turn in self.rounds[title]]

    def mfu(self, title: str) -> list[float]:
        """Return model FLOPs per second over the matrix-multiply rate measured around the same turn."""
        rates = zip(self.tokens_per_second(title), self.rounds[title], strict=True)
        return [self.flops_per_token * rate / turn.matmul_flops_per_second for rate, turn in rates]

    def cpu_ratios(self, title: str) -> list[float]:
        """Return, round by round, the first contestant's processor seconds per step over this one's."""
        pairs = zip(self.cpu_seconds_per_step(self.first), self.cpu_seconds_per_step(title), strict=True)
        return [first / other for first, other in pairs]

    def step_seconds(self, title: str) -> list[float]:
        """Return the wall seconds per optimizer step, turn by turn."""
        return [turn.seconds / len(turn.losses) for turn in self.rounds[title]]

    def bubbles(self, title: str) -> list[float]:
        """Return the measured bubble of every step, mean over ranks; empty if the contestant measures none."""
        return [bubble for turn in self.rounds[title] for bubble in turn.bubbles]

    def that_train_something_else(self) -> list[str]:
        """Return the titles of contestants whose losses differ from the first one's by more than SAME_LOSS."""
        return [title for title in self.rounds if self.largest_loss_difference(title) > SAME_LOSS]

    def all_turns(self) -> list[Turn]:
        """Return every turn of every contestant."""
        return [turn for turns in self.rounds.values() for turn in turns]

    def largest_loss_difference(self, title: str) -> float:
        """Return the largest relative difference of a step's loss from the first contestant's, over the warm-up."""
        pairs = zip(self.warm_ups[self.first].losses, self.warm_ups[title].losses, strict=True)
        return max(abs(other / first - 1) for first, other in pairs)


def compete(
    lineup: Lineup, overrides: Sequence[str], *, num_rounds: int, steps_per_turn: int, warm_up_steps: int
) -> Contest:
    """Return what every contestant did; all are started first, then take turns, one trains at a time."""
    overrides = [*overrides, *lineup.overrides]
    config = compose([*overrides, *lineup.contestants[lineup.first][1]])
    training_stage, stage = next(iter(config.stages.items()))
    warm_ups: dict[str, Turn] = {}
    rounds: dict[str, list[Turn]] = {title: [] for title in lineup.contestants}
    with ExitStack() as stack:
        crews = {}
        for title, (module, layout) in lineup.contestants.items():
            crews[title] = stack.enter_context(crew(module, [*overrides, *layout], num_ranks=lineup.num_ranks))
            warm_ups[title] = crews[title].turn(warm_up_steps, timeout_seconds=_TURN_TIMEOUT_SECONDS)
        for _ in range(num_rounds):
            for title, its_crew in crews.items():
                rounds[title].append(its_crew.turn(steps_per_turn, timeout_seconds=_TURN_TIMEOUT_SECONDS))
    return Contest(
        first=lineup.first,
        num_ranks=lineup.num_ranks,
        config=config,
        training_stage=training_stage,
        tokens_per_step=stage.global_batch_sequences * stage.sequence_length,
        flops_per_token=training_flops_per_token(config.model, stage.sequence_length),
        warm_ups=warm_ups,
        rounds=rounds,
    )

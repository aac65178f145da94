"""DPO beside TRL's DPOTrainer: the same pairs in the same steps, the same weights and optimizer, in turns.

One process of one thread each, fp32. Ours also runs without packing, TRL's with and without a reference model that is
asked in every step: so what each of the two saves can be read off.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.contests import Lineup
from benchmarks.preference_pairs import answer_lengths, preference_overrides, write_pairs
from benchmarks.tables import spread, table
from benchmarks.throughput import Contest, compete
from training.config.load import compose
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.models.sizes import num_parameters

_NUM_PAIRS = 1200
_TOKENS = 1024
_PACKS = 2
_SAME_LOSS = 1e-3
"""Largest relative difference of losses at which two contestants train the same thing. A loss here is of differences of
sums over hundreds of nats, which TRL adds in float32 and we in float64."""
_PACKED, _PADDED = "Autarky, packs, reference cached", "Autarky, a pair a row, reference cached"
_CACHED, _BOTH = "TRL, precompute_ref_log_probs", "TRL, reference model in each step"
_LINEUP = Lineup(
    num_ranks=1,
    overrides=(),
    contestants={
        _PACKED: ("preference_autarky", ()),
        _PADDED: ("preference_padded", ()),
        _CACHED: ("preference_trl_precomputed", ()),
        _BOTH: ("preference_trl", ()),
    },
)
_MODEL = ("model=tiny", "data.tokenizer_vocab_size=4096", f"model.max_sequence_length={_TOKENS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceContest:
    """The turns of all contestants and what was in them."""

    contest: Contest
    lengths: list[np.ndarray]
    """Of each step: tokens of each answer with its prompt."""
    num_warm_up_steps: int

    def steps(self, number: int) -> list[np.ndarray]:
        """Return the lengths of a round's steps."""
        size = len(self.contest.rounds[self.contest.first][0].losses)
        first = self.num_warm_up_steps + number * size
        return self.lengths[first : first + size]

    def seconds_per_pair(self, title: str) -> list[float]:
        """Return a contestant's seconds per pair, round by round."""
        return [
            turn.seconds / (sum(map(len, self.steps(number))) / 2)
            for number, turn in enumerate(self.contest.rounds[title])
        ]

    def cpu_seconds_per_pair(self, title: str) -> list[float]:
        """Return a contestant's processor seconds per pair, round by round."""
        return [
            turn.cpu_seconds / (sum(map(len, self.steps(number))) / 2)
            for number, turn in enumerate(self.contest.rounds[title])
        ]

    def tokens_per_second(self, title: str) -> list[float]:
        """Return the tokens of answers and prompts, no padding, per second, round by round."""
        return [
            sum(lengths.sum() for lengths in self.steps(number)) / turn.seconds
            for number, turn in enumerate(self.contest.rounds[title])
        ]

    def ratios(self, title: str, to: str) -> list[float]:
        """Return one contestant's seconds over another's, round by round."""
        pairs = zip(self.seconds_per_pair(title), self.seconds_per_pair(to), strict=True)
        return [its / others for its, others in pairs]

    def cpu_ratios(self, title: str, to: str) -> list[float]:
        """Return one contestant's processor seconds over another's, round by round."""
        pairs = zip(self.cpu_seconds_per_pair(title), self.cpu_seconds_per_pair(to), strict=True)
        return [its / others for its, others in pairs]

    def reference_seconds_per_pair(self, title: str) -> float:
        """Return what the reference's log-probabilities took beforehand, per pair of the whole contest."""
        return self.contest.rounds[title][0].reference_seconds / self.num_pairs

    @property
    def num_pairs(self) -> int:
        """Pairs of all steps."""
        return sum(map(len, self.lengths)) // 2

    @property
    def computed_tokens(self) -> dict[str, float]:
        """Tokens computed per token of an answer or prompt by the trained model, padding too, of each contestant."""
        num_tokens = sum(lengths.sum() for lengths in self.lengths)
        pairs = [lengths.reshape(-1, 2) for lengths in self.lengths]
        packed = len(self.lengths) * _PACKS * _TOKENS
        # A row of ours has n - 1 positions for n tokens, which is left out of account here.
        padded = sum(of_step.sum(1).max() * len(of_step) for of_step in pairs)
        answers = sum(2 * of_step.max() * len(of_step) for of_step in pairs)
        counted = {_PACKED: packed, _PADDED: padded, _CACHED: answers, _BOTH: answers}
        return {title: count / num_tokens for title, count in counted.items()}


def compete_in_preferences(
    root: Path, *, num_rounds: int, steps_per_turn: int, warm_up_steps: int, say: Callable[[str], None]
) -> PreferenceContest:
    """Return what every contestant did.

    Args:
        root: a folder for the pairs and what is prepared of them.
        num_rounds: turns of every contestant.
        steps_per_turn: optimizer steps of each.
        warm_up_steps: optimizer steps before, in which their losses are compared.
        say: is told what is done.
    """
    path = root / "pairs.jsonl"
    write_pairs(path, _NUM_PAIRS)
    overrides = preference_overrides(
        path,
        root / "prepared",
        model=_MODEL,
        sequence_length=_TOKENS,
        num_packs=_PACKS,
        num_steps=warm_up_steps + num_rounds * steps_per_turn,
    )
    say("preference: preparing pairs")
    config = compose(overrides)
    (training_stage,) = config.stages
    loader = StageLoader(ensure(config.data), config, training_stage)
    say("preference: training, in turns")
    contest = compete(
        _LINEUP, overrides, num_rounds=num_rounds, steps_per_turn=steps_per_turn, warm_up_steps=warm_up_steps
    )
    return PreferenceContest(
        contest=contest,
        lengths=[answer_lengths(loader, step) for step in range(config.num_steps(training_stage))],
        num_warm_up_steps=warm_up_steps,
    )


def preferences(measured: PreferenceContest) -> list[str]:
    """Return the section of the page."""
    contest = measured.contest
    rows = []
    for title in contest.rounds:
        step = [1000 * seconds for seconds in measured.seconds_per_pair(title)]
        cpu = [1000 * seconds for seconds in measured.cpu_seconds_per_pair(title)]
        reference = 1000 * measured.reference_seconds_per_pair(title)
        rows.append(
            [
                title,
                spread(step, ".0f"),
                spread(measured.tokens_per_second(title), ",.0f"),
                spread(measured.ratios(title, _PACKED), ".2f"),
                spread(cpu, ".0f"),
                spread(measured.cpu_ratios(title, _PACKED), ".2f"),
                f"{measured.computed_tokens[title]:.2f}",
                f"{reference:.1f}" if reference else "-",
                f"{contest.largest_loss_difference(title):.1e}",
            ]
        )
    heads = [
        "",
        "ms per pair",
        "tokens/s",
        "it ÷ ours",
        "CPU ms per pair",
        "CPU, it ÷ ours",
        "computed ÷ tokens",
        "reference, ms per pair",
        "loss difference",
    ]
    others = [title for title in contest.rounds if contest.largest_loss_difference(title) > _SAME_LOSS]
    verdict = f"NOT the same training: {', '.join(others)}" if others else "all train the same thing"
    num_steps = len(contest.rounds[_PACKED][0].losses)
    answers = np.concatenate(measured.lengths)
    return [
        "## Preference",
        "",
        f"DPO of a model of {num_parameters(contest.config.model) / 1e6:.1f}M parameters, one process of one thread, "
        f"fp32, AdamW, gradients clipped, nothing recomputed. Pairs out of Python files: head and docstring of a "
        f"function, its body, the body of another; prompt and answer have {answers.mean():.0f} tokens in the mean, "
        f"{np.median(answers):.0f} in the median, {answers.max()} at most. A step has {_PACKS} packs of {_TOKENS:,} "
        f"tokens, {measured.num_pairs / len(measured.lengths):.1f} pairs in the mean, and all contestants have the "
        f"same pairs in the same steps. TRL {version('trl')} pads each answer to the longest of the step.",
        "",
        *table(heads, rows),
        "",
        f"- {len(contest.rounds[_PACKED])} rounds of {num_steps} steps, in turns; ratios are taken within a round. "
        "CPU: processor time, which other work on the machine moves less. tokens/s: of prompts and answers, no "
        "padding. Computed: positions of the trained model's forward, padding too.",
        "- Reference: what its log-probabilities took before the first step, once for all epochs; not in the first "
        "columns. Ours sorts answers by length for it.",
        f"- Reference cached instead of asked in each step: TRL's step takes "
        f"{spread(measured.cpu_ratios(_BOTH, _CACHED), '.2f')} times the processor time with it. Packing: ours takes "
        f"{spread(measured.cpu_ratios(_PADDED, _PACKED), '.2f')} times the processor time without it.",
        f"- Loss difference: largest relative one from {_PACKED} over {measured.num_warm_up_steps} warm-up steps; at "
        f"most {_SAME_LOSS:.0e} is the same: {verdict}.",
        "- At least as fast as TRL with cached references, by processor time: "
        f"{'yes' if statistics.median(measured.cpu_ratios(_CACHED, _PACKED)) >= 1 else 'no'}.",
    ]

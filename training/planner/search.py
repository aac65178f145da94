"""The best layouts of a model on a cluster: every legal one is planned, what does not fit is told, the rest is ranked.

Recompute and the regathering of ZeRO-3 are not searched but follow: of what fits, the least of either is the fastest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.planner.constants import CONSTANTS, Constants
from training.planner.flops import mfu
from training.planner.job import Batch, Job, Recompute, Split
from training.planner.layouts import (
    LEAST_TO_MOST_RECOMPUTE,
    Limits,
    Refusals,
    describe,
    legal_layouts,
    runs_today,
)
from training.planner.memory import Fit, Verdict, verdict
from training.planner.step_time import StepTime, step_time


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layout that fits, and what it takes."""

    job: Job
    time: StepTime
    verdict: Verdict
    """How full the fullest pipeline stage is."""

    @property
    def layout(self) -> str:
        """The layout in one line."""
        return describe(self.job.split, self.job.batch)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.job.tokens_per_step / self.time.seconds

    @property
    def device_seconds_per_token(self) -> float:
        """What a token takes of devices' time: its price without a currency."""
        return self.job.split.world_size / self.tokens_per_second

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, 0 to 1; causal attention."""
        return mfu(self.job, self.time.seconds)

    @property
    def runs_today(self) -> bool:
        """Whether an engine of this version runs it."""
        return runs_today(self.job)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """All layouts, judged."""

    ranked: tuple[Candidate, ...]
    """Those that fit, by device time for a token, the cheapest first."""
    refused: tuple[tuple[str, int, str], ...]
    """(reason, how many layouts, the first of them), the most frequent first."""

    @property
    def num_layouts(self) -> int:
        """Layouts that were looked at."""
        return len(self.ranked) + sum(count for _, count, _ in self.refused)

    def best(self, most: int) -> tuple[Candidate, ...]:
        """Return the best layouts, of those that differ in their ZeRO stage alone the best one."""
        found: dict[tuple[Split, Batch], Candidate] = {}
        for candidate in self.ranked:
            split = candidate.job.split
            key = replace(split, zero_stage=0, gathers_per_step=False, recompute=Recompute.none)
            found.setdefault((key, candidate.job.batch), candidate)
        return tuple(found.values())[:most]

    def pareto(self) -> tuple[Candidate, ...]:
        """Return those than which no other is better in speed, memory and price at once, the fastest first."""
        return pareto(self.ranked)


def search(template: Job, limits: Sequence[Limits], constants: Constants = CONSTANTS) -> SearchResult:
    """Return all layouts of a model, each judged.

    Args:
        template: model, device, network, number format, sequence length and software; its split and batch are searched.
        limits: numbers of devices to search on.
        constants: of the planner.
    """
    refusals = Refusals()
    candidates: list[Candidate] = []
    for limit in limits:
        for job in legal_layouts(template, limit, refusals):
            candidate = _least_that_fits(job, constants)
            if candidate is None:
                lean = _variants(job)[-1]
                refusals.add(
                    f"ZeRO-{job.split.zero_stage} does not fit, even with full recompute",
                    f"{describe(lean.split, lean.batch)} {verdict(lean, constants).reason}",
                )
            else:
                candidates.append(candidate)
    candidates.sort(
        key=lambda candidate: (round(candidate.device_seconds_per_token, 12), candidate.verdict.needed_bytes)
    )
    counted = refusals.counts.most_common()
    return SearchResult(
        ranked=tuple(candidates),
        refused=tuple((reason, count, refusals.examples[reason]) for reason, count in counted),
    )


def pareto(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates that no other beats or equals in seconds per token, memory and device time at once."""
    front: list[Candidate] = []
    by_speed = sorted(
        candidates, key=lambda c: (1 / c.tokens_per_second, c.verdict.needed_bytes, c.device_seconds_per_token)
    )
    for candidate in by_speed:  # whoever comes later is no faster
        if not any(
            other.verdict.needed_bytes <= candidate.verdict.needed_bytes
            and other.device_seconds_per_token <= candidate.device_seconds_per_token
            for other in front
        ):
            front.append(candidate)
    return tuple(front)


def _variants(job: Job) -> list[Job]:
    """Return the job's ways to save memory, the fastest first."""
    in_pipeline = job.split.zero_stage == 3 and job.split.pipeline > 1
    return [
        replace(job, split=replace(job.split, recompute=recompute, gathers_per_step=per_step))
        for recompute in LEAST_TO_MOST_RECOMPUTE
        for per_step in ((True, False) if in_pipeline else (False,))
    ]


def _least_that_fits(job: Job, constants: Constants) -> Candidate | None:
    """Return the fastest variant of a layout that fits; None if none does.

    A variant that is tight counts only where no other fits.
    """
    judged = [(variant, verdict(variant, constants)) for variant in _variants(job)]
    for fit in (Fit.fits, Fit.tight):
        fitting = [
            Candidate(job=variant, time=step_time(variant, constants), verdict=found)
            for variant, found in judged
            if found.fit is fit
        ]
        if fitting:
            return min(fitting, key=lambda candidate: candidate.time.seconds)
    return None

"""All that is rehearsed of a training stage in one value, and its check. No torch."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from training.config.schema import RunConfig
from training.models.memory import device_memory_bytes
from training.models.rank_memory import RankMemory
from training.planner.stage_memory import StageMemory
from training.rehearsal.checks import check_checkpoint, check_memory, check_samples, check_state
from training.rehearsal.execution import execute
from training.rehearsal.findings import Finding
from training.rehearsal.operations import Program
from training.rehearsal.ownership import ELEMENT_BYTES, STATE_KINDS, Ownership, Slices, build_biases, build_ownership
from training.rehearsal.plan import Plan, plan_of
from training.rehearsal.planned_memory import planned_memory
from training.rehearsal.program import Phase, Texts, build_programs
from training.rehearsal.samples import SampledStep, build_samples

_WITH_COMPUTATION = (Phase.first_step, Phase.second_step, Phase.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """What every rank runs, holds, reads and writes."""

    plan: Plan
    phases: dict[Phase, Texts]
    ownership: Ownership
    state: dict[str, Slices]
    """weight, exp_avg, exp_avg_sq -> who holds what."""
    files: dict[str, Slices]
    """The same of a checkpoint's files: who writes what."""
    biases: Ownership
    """Who writes the biases that balance experts without a loss."""
    file_bytes: NDArray[np.int64]
    """Tensor bytes of each rank's checkpoint file."""
    samples: tuple[SampledStep, ...]
    memory: tuple[RankMemory | StageMemory, ...]
    """The memory plan of each pipeline stage's ranks; none of what no engine runs on a cluster of unknown links."""
    device_bytes: NDArray[np.float64]
    """Memory of each rank's device."""

    @classmethod
    def of(cls, config: RunConfig, training_stage: str) -> Self:
        """Return the rehearsal of a training stage's layout.

        Raises:
            ConfigError: it is a layout that cannot be rehearsed.
        """
        plan = plan_of(config, training_stage)
        ownership = build_ownership(plan)
        written = ownership.state.owned()
        biases = build_biases(plan)
        world_size = plan.grid.world_size
        elements = len(STATE_KINDS) * written.numel_of_ranks(world_size) + biases.state.numel_of_ranks(world_size)
        return cls(
            plan=plan,
            phases=build_programs(plan),
            ownership=ownership,
            state=dict.fromkeys(STATE_KINDS, ownership.state),
            files=dict.fromkeys(STATE_KINDS, written),
            biases=biases,
            file_bytes=ELEMENT_BYTES * elements,
            samples=build_samples(plan),
            memory=planned_memory(plan),
            device_bytes=np.full(world_size, device_memory_bytes(config, plan.layout)),
        )

    def check(self) -> list[Finding]:
        """Return every mistake; none if all programs end, fit together and cover everything once."""
        found: list[Finding] = []
        executed: list[Texts] = []
        for phase, texts in self.phases.items():
            if any(texts is other for other in executed):
                continue  # the second step is often the first one again
            executed.append(texts)
            schedule = self.plan.schedule if phase in _WITH_COMPUTATION else None
            found += execute(phase, texts, self.plan.grid, schedule)
        found += check_state(self.plan, self.ownership, self.state)
        found += check_samples(self.plan, self.samples)
        found += check_checkpoint(self.plan, self.ownership, self.files, self.biases, self.file_bytes)
        found += check_memory(self.plan, self.state, self.memory, self.device_bytes)
        return found

    def with_text(self, phase: Phase, rank: int, text: Program) -> Self:
        """Return the same with another program of one rank in one phase."""
        texts = self.phases[phase]
        text_of_rank = texts.text_of_rank.copy()
        text_of_rank[rank] = len(texts.texts)
        return replace(self, phases={**self.phases, phase: Texts((*texts.texts, text), text_of_rank)})

"""How many samples each global batch of a training stage has: always as many, or more and more by a ramp. Pure."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRampStep:
    """Smaller global batches at the beginning of a training stage (GPT-3, arXiv:2005.14165, appendix B)."""

    until_tokens: int
    """Tokens of the training stage up to which batches are so large; rounded up to whole batches."""
    global_batch_sequences: int
    """Samples of such a batch over all ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPhase:
    """Consecutive batches of one size."""

    first_batch: int
    """Place of the first one in the training stage's order of global batches."""
    first_sample: int
    """Place of its first sample in the training stage's order of samples."""
    sequences: int
    """Samples of each of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSizes:
    """The sizes of a training stage's global batches; the last phase has no end."""

    phases: tuple[BatchPhase, ...]
    sequence_length: int
    """Tokens per sample."""

    def sequences(self, batch: int) -> int:
        """Return the samples of a batch, counted from 0 at the training stage's start."""
        return self._phase(batch).sequences

    def samples_before(self, batch: int) -> int:
        """Return the samples of all batches before one: the place of its first sample."""
        phase = self._phase(batch)
        return phase.first_sample + (batch - phase.first_batch) * phase.sequences

    def tokens_before(self, batch: int) -> int:
        """Return the tokens of all batches before one."""
        return self.samples_before(batch) * self.sequence_length

    def num_batches(self, tokens: int) -> int:
        """Return how many batches from the first on have so many tokens or just more."""
        samples = -(-tokens // self.sequence_length)
        phase = self.phases[max(0, bisect_right(self.phases, samples - 1, key=attrgetter("first_sample")) - 1)]
        return phase.first_batch + -(-(samples - phase.first_sample) // phase.sequences)

    def lengths(self, num_batches: int) -> list[tuple[int, int]]:
        """Return (batches, samples of each) of every phase that the first `num_batches` batches reach, in order."""
        ends = [*(phase.first_batch for phase in self.phases[1:]), num_batches]
        pairs = zip(self.phases, ends, strict=True)
        return [
            (min(end, num_batches) - phase.first_batch, phase.sequences)
            for phase, end in pairs
            if phase.first_batch < num_batches
        ]

    def _phase(self, batch: int) -> BatchPhase:
        return self.phases[bisect_right(self.phases, batch, key=attrgetter("first_batch")) - 1]


def batch_sizes(ramp: Sequence[BatchRampStep], *, global_batch_sequences: int, sequence_length: int) -> BatchSizes:
    """Return the sizes of a training stage's batches.

    Args:
        ramp: its smaller ones, in order; a step whose tokens the steps before have used up already has no batch.
        global_batch_sequences: samples of each batch after the ramp.
        sequence_length: tokens per sample.
    """
    phases: list[BatchPhase] = []
    batch = sample = 0
    for step in ramp:
        tokens_left = step.until_tokens - sample * sequence_length
        num_batches = -(-tokens_left // (step.global_batch_sequences * sequence_length))
        if num_batches > 0:
            phases.append(BatchPhase(first_batch=batch, first_sample=sample, sequences=step.global_batch_sequences))
            batch += num_batches
            sample += num_batches * step.global_batch_sequences
    phases.append(BatchPhase(first_batch=batch, first_sample=sample, sequences=global_batch_sequences))
    return BatchSizes(phases=tuple(phases), sequence_length=sequence_length)

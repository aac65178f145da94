"""A live engine as a language model: log-probabilities of continuations and greedy decoding, under any layout.

Every rank calls the engine equally often and in the same order, whatever its replica has left to do: ZeRO-3 and
pipelines would wait for each other forever otherwise. Shapes: B sequences of a batch, T tokens, N sequences in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from training.data.batch import IGNORED_LABEL, MicroBatch
from training.engine.base import SequenceScores
from training.parallel.layout import Layout


class ScoringEngine(Protocol):
    """The part of `training.engine.base.Engine` that evaluation uses."""

    @property
    def layout(self) -> Layout:
        """Which rank does what."""
        ...

    def score(self, batch: MicroBatch, /) -> SequenceScores:
        """Score sequences without changing any training state."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredSequence:
    """A continuation to be scored after a context; an eos token, as between documents, stands before both."""

    context_ids: Sequence[int]
    continuation_ids: Sequence[int]
    """At least one token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceScore:
    """How likely a continuation is."""

    logprob: float
    """log p(continuation | eos, context), in nats."""
    num_tokens: int
    """Tokens of the continuation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One call of the engine by one replica."""

    batch_index: int
    counts: bool
    """False if the replica only keeps the others company; its result is dropped."""


def turns(*, num_batches: int, num_replicas: int, replica: int) -> list[Turn]:
    """Return a replica's calls: batches replica, replica + num_replicas, …; equally many calls on every replica."""
    num_rounds = -(-num_batches // num_replicas)
    own = (round_index * num_replicas + replica for round_index in range(num_rounds))
    return [Turn(batch_index=min(index, num_batches - 1), counts=index < num_batches) for index in own]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLM:
    """Scores and continues sequences with an engine; all methods are collective and return the same on every rank.

    Batches are composed over all sequences before replicas share them out, and all batches of a call have one length:
    the arithmetic of a sequence does not depend on the layout.
    """

    engine: ScoringEngine
    eos_id: int
    batch_sequences: int
    """Sequences per call of the engine."""

    def score(self, sequences: Sequence[ScoredSequence]) -> list[SequenceScore]:
        """Return the score of each sequence, in order."""
        logprob_N = self.own_logprobs(sequences, rank=dist.get_rank() if dist.is_initialized() else 0)
        if dist.is_initialized():
            logprob_N = _sum_over_ranks(logprob_N)
        return [
            SequenceScore(logprob=logprob, num_tokens=len(sequence.continuation_ids))
            for logprob, sequence in zip(logprob_N.tolist(), sequences, strict=True)
        ]

    def own_logprobs(self, sequences: Sequence[ScoredSequence], *, rank: int) -> Tensor:
        """Return a rank's share of all log-probabilities (N, float64), 0 elsewhere; the ranks' sum is the result.

        Only the first pipeline stage of a replica contributes, and adding zeros is exact, so the sum does not round.
        """
        logprob_N = torch.zeros(len(sequences), dtype=torch.float64)
        layout = self.engine.layout
        length_tokens = max((_input_tokens(sequence) for sequence in sequences), default=0)
        batches = self._batches(sequences)
        for turn in turns(num_batches=len(batches), num_replicas=layout.num_replicas, replica=layout.replica_of(rank)):
            batch = batches[turn.batch_index]
            scores = self.engine.score(self._micro_batch(batch, length_tokens))
            if turn.counts and layout.pipeline_stage_of(rank) == 0:
                first = turn.batch_index * self.batch_sequences
                logprob_N[first : first + len(batch)] = scores.logprob_B.to(logprob_N)
        return logprob_N

    def greedy(self, prompts_ids: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Return the most likely next tokens after each prompt: up to `num_tokens`, ending before the first eos.

        All replicas do the same work, always `num_tokens` forwards: what a model says never changes who waits for whom.
        """
        length_tokens = 1 + max((len(prompt) for prompt in prompts_ids), default=0) + num_tokens - 1
        continuations: list[list[int]] = [[] for _ in prompts_ids]
        for first in range(0, len(prompts_ids), self.batch_sequences):
            rows = range(first, min(first + self.batch_sequences, len(prompts_ids)))
            for _ in range(num_tokens):
                # The engine tells the next token at the last position that has a target; any target will do.
                batch = [
                    ScoredSequence(context_ids=[*prompts_ids[row], *continuations[row]], continuation_ids=[self.eos_id])
                    for row in rows
                ]
                scores = self.engine.score(self._micro_batch(batch, length_tokens))
                for row, token in zip(rows, scores.next_token_B.tolist(), strict=True):
                    continuations[row].append(token)
        return [_until(continuation, self.eos_id) for continuation in continuations]

    def _batches(self, sequences: Sequence[ScoredSequence]) -> list[Sequence[ScoredSequence]]:
        return [
            sequences[first : first + self.batch_sequences] for first in range(0, len(sequences), self.batch_sequences)
        ]

    def _micro_batch(self, sequences: Sequence[ScoredSequence], length_tokens: int) -> MicroBatch:
        """Return the sequences, padded on the right to one length; only continuations are targets."""
        input_ids_BT = torch.full((len(sequences), length_tokens), self.eos_id, dtype=torch.int64)
        labels_BT = torch.full((len(sequences), length_tokens), IGNORED_LABEL, dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids = torch.tensor([self.eos_id, *sequence.context_ids, *sequence.continuation_ids], dtype=torch.int64)
            num_context, num_inputs = len(sequence.context_ids), len(ids) - 1
            input_ids_BT[row, :num_inputs] = ids[:-1]
            labels_BT[row, num_context:num_inputs] = ids[1 + num_context :]
        return MicroBatch(input_ids_BT=input_ids_BT, labels_BT=labels_BT)


def _input_tokens(sequence: ScoredSequence) -> int:
    """Return the positions a sequence needs: eos, context, and the continuation less its last token."""
    assert len(sequence.continuation_ids) > 0, "a continuation to be scored has at least one token"
    return len(sequence.context_ids) + len(sequence.continuation_ids)


def _until(token_ids: list[int], end_id: int) -> list[int]:
    return token_ids[: token_ids.index(end_id)] if end_id in token_ids else token_ids


def _sum_over_ranks(value_N: Tensor) -> Tensor:
    """Return the sum over all ranks, on CPU; gloo takes CPU tensors, the accelerators' backends only their own."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = accelerator is None or "gloo" in dist.get_backend()
    shared_N = value_N if on_cpu else value_N.to(accelerator)
    dist.all_reduce(shared_N, op=dist.ReduceOp.SUM)
    return shared_N.cpu()

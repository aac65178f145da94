"""A live engine as a language model over tokens: log-probabilities of continuations, and text to come, in any layout.

Every rank calls the engine equally often and in the same order, whatever its replica has left to do: ZeRO-3 and
pipelines would wait for each other forever otherwise. Batches are composed over all requests before replicas share
them out, so the arithmetic of a request does not depend on the layout. Shapes: B sequences of a batch, T tokens, N
requests in all.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from eval.batching import Turn, batches_by_length, contexts_of, turns, two_passes_are_cheaper
from eval.requests import Continuation, Prompt, ScoredContinuation
from training.data.batch import IGNORED_LABEL, MicroBatch
from training.engine.base import Sampling, SequenceScores
from training.models.inference import KeyValueCache
from training.parallel.layout import Layout


class InferenceEngine(Protocol):
    """The part of `training.engine.base.Engine` that evaluation uses."""

    @property
    def layout(self) -> Layout:
        """Which rank does what."""
        ...

    def score(self, batch: MicroBatch, cache: KeyValueCache | None = None, /) -> SequenceScores:
        """Score sequences without changing any training state."""
        ...

    def next_tokens(
        self,
        input_ids_BT: Tensor,
        num_tokens_B: Tensor,
        cache: KeyValueCache,
        sampling: Sampling | None = None,
        /,
    ) -> Tensor:
        """Return the token that follows each sequence once these are added to it."""
        ...

    def keep_alive(self) -> None:
        """Say that the evaluation goes on while the engine has nothing to do; leave it if the run was told to stop."""
        ...


class Speller(Protocol):
    """Token ids to text, special tokens by their names: a stop string may be one."""

    def spelled(self, token_ids: Sequence[int], /) -> str:
        """Return the text of token ids."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLM:
    """Scores and continues sequences with an engine; all methods are collective and return the same on every rank."""

    engine: InferenceEngine
    speller: Speller
    """Of the model's tokenizer: generation ends where a stop string appears in the text."""
    eos_id: int
    """Ends every generation; also what stands behind the end of short sequences, where nothing sees it."""
    batch_sequences: int
    """Sequences per call of the engine."""

    def score(self, continuations: Sequence[Continuation]) -> list[ScoredContinuation]:
        """Return the score of each continuation, in order."""
        scores = _sum_over_ranks(self.own_scores(continuations, rank=_rank()))
        return [ScoredContinuation(logprob=logprob, is_greedy=greedy == 1.0) for logprob, greedy in scores.T.tolist()]

    def own_scores(self, continuations: Sequence[Continuation], *, rank: int) -> Tensor:
        """Return a rank's share of log-probabilities and greedy flags (float64 [2, N]), 0 elsewhere.

        Only the first pipeline stage of a replica contributes, and adding zeros is exact: the ranks' sum is the result,
        without rounding. Where continuations share contexts and that saves work, each context is run once a batch.
        """
        found = torch.zeros((2, len(continuations)), dtype=torch.float64)
        batches = batches_by_length(continuations, self.batch_sequences)
        in_two = two_passes_are_cheaper(continuations, batches)
        for turn in self._turns(len(batches), rank):
            batch = batches[turn.batch_index]
            rows = [continuations[index] for index in batch]
            scores = self._after_contexts(rows) if in_two else self.engine.score(_whole(rows, self.eos_id))
            if turn.counts and self.engine.layout.speaks_for_replica(rank):
                found[0, batch], found[1, batch] = scores.logprob_B, scores.is_greedy_B.double()
        return found

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens that follow each prompt, in order: up to where its text is complete, eos left out."""
        longest = max((prompt.max_new_tokens for prompt in prompts), default=0)
        own = self.own_tokens(prompts, rank=_rank())
        grid = torch.zeros((len(prompts), 1 + longest), dtype=torch.int64)
        for index, tokens in own.items():
            grid[index, 0], grid[index, 1 : 1 + len(tokens)] = len(tokens), torch.tensor(tokens, dtype=torch.int64)
        return [row[1 : 1 + row[0]] for row in _sum_over_ranks(grid).tolist()]

    def own_tokens(self, prompts: Sequence[Prompt], *, rank: int) -> dict[int, list[int]]:
        """Return what a rank contributes: index of a prompt -> its new tokens."""
        layout, own = self.engine.layout, {}
        batches = batches_by_length(prompts, self.batch_sequences)
        for turn in self._turns(len(batches), rank):
            batch = batches[turn.batch_index]
            new = self._continue([prompts[index] for index in batch], is_wanted=turn.counts)
            if turn.counts and layout.speaks_for_replica(rank):
                own |= dict(zip(batch, new, strict=True))
        return own

    def _turns(self, num_batches: int, rank: int) -> list[Turn]:
        layout = self.engine.layout
        return turns(num_batches=num_batches, num_replicas=layout.num_replicas, replica=layout.replica_of(rank))

    def _after_contexts(self, rows: Sequence[Continuation]) -> SequenceScores:
        """Score continuations after contexts that are run once each, all but for their last token."""
        contexts, context_of_row = contexts_of(rows)
        heads = [context[:-1] for context in contexts]
        longest_tail = max(len(row.continuation_ids) for row in rows)
        lengths_B = torch.tensor([len(head) for head in heads])
        input_ids_BT = _padded(heads, self.eos_id)
        cache = KeyValueCache(len(heads), input_ids_BT.shape[1] + longest_tail)
        self.engine.score(
            MicroBatch(input_ids_BT=input_ids_BT, labels_BT=torch.full_like(input_ids_BT, IGNORED_LABEL)), cache
        )
        cache.advance(lengths_B)
        tails = [Continuation(context_ids=row.context_ids[-1:], continuation_ids=row.continuation_ids) for row in rows]
        return self.engine.score(
            _whole(tails, self.eos_id), cache.repeated(context_of_row, int(lengths_B.max()) + longest_tail)
        )

    def _continue(self, prompts: Sequence[Prompt], *, is_wanted: bool) -> list[list[int]]:
        """Continue a batch of prompts token by token until all are complete, here and on the other replicas."""
        texts = [_Text(prompt, self.speller, self.eos_id) for prompt in prompts]
        input_ids_BT = _padded([prompt.ids for prompt in prompts], self.eos_id)
        num_tokens_B = torch.tensor([len(prompt.ids) for prompt in prompts])
        cache = KeyValueCache(len(prompts), input_ids_BT.shape[1] + max(prompt.max_new_tokens for prompt in prompts))
        running = list(range(len(texts))) if is_wanted else []
        while self._anyone(bool(running)):
            if not running:
                self._keep_company()
                continue
            token_B = self.engine.next_tokens(input_ids_BT, num_tokens_B, cache, _sampling(texts, running))
            for text, token in zip((texts[index] for index in running), token_B.tolist(), strict=True):
                text.add(token)
            left = [row for row, index in enumerate(running) if not texts[index].is_complete]
            if 0 < len(left) <= len(running) // 2:  # half of the work would be for nothing
                cache, running = cache.repeated(left, cache.capacity_tokens), [running[row] for row in left]
            elif not left:
                running = []
            input_ids_BT = torch.tensor([[texts[index].newest] for index in running])
            num_tokens_B = torch.ones(len(running), dtype=torch.int64)
        return [text.token_ids for text in texts]

    def _keep_company(self) -> None:
        """Call the engine as the other replicas do, for nothing."""
        one_B = torch.ones(1, dtype=torch.int64)
        self.engine.next_tokens(torch.full((1, 1), self.eos_id), one_B, KeyValueCache(1, 1), None)

    def _anyone(self, is_running: bool) -> bool:
        """Return whether any replica goes on, the same on every rank; those of one replica know without asking."""
        if self.engine.layout.num_replicas == 1:
            return is_running
        return bool(_sum_over_ranks(torch.tensor([int(is_running)])).item())


class _Text:
    """A text that grows: the tokens after a prompt, and whether they are complete."""

    def __init__(self, prompt: Prompt, speller: Speller, eos_id: int) -> None:
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.newest = eos_id
        self.is_complete = False
        self._speller = speller
        self._eos_id = eos_id
        # A token stands for at least one byte, but the first ones of the window may begin inside of a character.
        self._window_tokens = 8 + max((len(stop.encode()) for stop in prompt.stop), default=0)

    def add(self, token: int) -> None:
        """Add a token, unless the text is complete."""
        self.newest = token
        if self.is_complete:
            return
        if token == self._eos_id:
            self.is_complete = True
            return
        self.token_ids.append(token)
        tail = self._speller.spelled(self.token_ids[-self._window_tokens :]) if self.prompt.stop else ""
        self.is_complete = len(self.token_ids) >= self.prompt.max_new_tokens or any(
            stop in tail for stop in self.prompt.stop
        )

    def uniform(self) -> float:
        """Return the number in [0, 1) that the next token is drawn with: of the prompt's seed and the place alone."""
        key = hashlib.sha256(f"{self.prompt.seed}/{len(self.token_ids)}".encode()).digest()
        return (int.from_bytes(key[:8], "big") >> 11) / 2**53


def _sampling(texts: Sequence[_Text], running: Sequence[int]) -> Sampling | None:
    """Return how the next tokens are drawn; prompts of one batch are drawn alike."""
    prompt = texts[running[0]].prompt
    if prompt.temperature == 0.0:
        return None
    uniform_B = torch.tensor([texts[index].uniform() for index in running], dtype=torch.float64)
    return Sampling(temperature=prompt.temperature, top_p=prompt.top_p, uniform_B=uniform_B)


def _whole(rows: Sequence[Continuation], pad_id: int) -> MicroBatch:
    """Return contexts and continuations in one, padded on the right; only continuations are targets."""
    input_ids_BT = _padded([[*row.context_ids, *row.continuation_ids[:-1]] for row in rows], pad_id)
    labels_BT = torch.full_like(input_ids_BT, IGNORED_LABEL)
    for labels_T, row in zip(labels_BT, rows, strict=True):
        first = len(row.context_ids) - 1
        labels_T[first : first + len(row.continuation_ids)] = torch.tensor(row.continuation_ids)
    return MicroBatch(input_ids_BT=input_ids_BT, labels_BT=labels_BT)


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Return token ids [B, T], T that of the longest row."""
    ids_BT = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.int64)
    for ids_T, row in zip(ids_BT, rows, strict=True):
        ids_T[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids_BT


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over all ranks, on CPU; gloo takes CPU tensors, the accelerators' backends only their own."""
    if not dist.is_initialized():
        return values
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = accelerator is None or "gloo" in dist.get_backend()
    shared = values if on_cpu else values.to(accelerator)
    dist.all_reduce(shared, op=dist.ReduceOp.SUM)
    return shared.cpu()

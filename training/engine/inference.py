"""What an engine says of sequences, under any layout: how likely they are, and which token is next."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.data.batch import IGNORED_LABEL, MicroBatch
from training.engine.base import Sampling, SequenceScores
from training.models.inference import InferencePass, KeyValueCache, inferring


class Inference(ABC):
    """The part of an engine that scores and continues sequences; engines say how a forward passes their stages."""

    _learns = True
    """Whether the modules are in training mode."""

    def _set_mode(self, *, learns: bool) -> None:
        """Switch all modules between training and evaluation: that passes hundreds of them, too many for every token."""
        if learns != self._learns:
            for module in self._modules():
                module.train(learns)
            self._learns = learns

    @abstractmethod
    def _modules(self) -> Iterable[nn.Module]:
        """Return what runs on this rank."""

    @abstractmethod
    def _infer(self, input_ids_BT: Tensor) -> Tensor | None:
        """Run a forward; return its logits on the last pipeline stage, None on the others."""

    @abstractmethod
    def _tell(self, found: Tensor | None, *, num_rows: int, num_columns: int) -> Tensor:
        """Return what the last pipeline stage found on every rank of the replica: float64 [rows, columns] on CPU."""

    @torch.no_grad()
    def score(self, batch: MicroBatch, cache: KeyValueCache | None = None) -> SequenceScores:
        """Score sequences; see `Engine.score`."""
        self._set_mode(learns=False)
        rows_N, columns_N = (batch.labels_BT != IGNORED_LABEL).nonzero(as_tuple=True)
        with inferring(InferencePass(rows_N=rows_N, columns_N=columns_N, cache=cache)):
            logits_NV = self._infer(batch.input_ids_BT)
        num_sequences = len(batch.labels_BT)
        found = None
        if logits_NV is not None:
            targets_N = batch.labels_BT[rows_N, columns_N].to(logits_NV.device)
            found = _scores(logits_NV, targets_N, rows_N.to(logits_NV.device), num_sequences)
        logprob_B, num_missed_B = self._tell(found, num_rows=2, num_columns=num_sequences)
        return SequenceScores(logprob_B=logprob_B, is_greedy_B=num_missed_B == 0)

    @torch.no_grad()
    def next_tokens(
        self, input_ids_BT: Tensor, num_tokens_B: Tensor, cache: KeyValueCache, sampling: Sampling | None = None
    ) -> Tensor:
        """Continue sequences by one token; see `Engine.next_tokens`."""
        self._set_mode(learns=False)
        rows_B = torch.arange(len(num_tokens_B))
        with inferring(InferencePass(rows_N=rows_B, columns_N=num_tokens_B - 1, cache=cache)):
            logits_BV = self._infer(input_ids_BT)
        cache.advance(num_tokens_B)
        found = None if logits_BV is None else choose(logits_BV, sampling)[None].double()
        # Token ids are exact in float64.
        return self._tell(found, num_rows=1, num_columns=len(rows_B))[0].long()


def choose(logits_BV: Tensor, sampling: Sampling | None) -> Tensor:
    """Return one token per row, int64 [B]: the most likely one, or one that is drawn.

    Drawn by inversion in float64, most likely tokens first: the same logits and the same number give the same token,
    and logits that differ by rounding give another one only where the number falls on the edge between two.
    """
    if sampling is None:
        return logits_BV.argmax(-1)
    p_BV, order_BV = (logits_BV.double() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(-1) - p_BV
    kept_BV = p_BV * (before_BV < sampling.top_p)  # the token that crosses the line is still in; never none
    up_to_BV = kept_BV.cumsum(-1)
    drawn_B = sampling.uniform_B.to(logits_BV.device) * up_to_BV[:, -1]
    place_B1 = (up_to_BV <= drawn_B[:, None]).sum(-1, keepdim=True)
    last_B1 = (kept_BV > 0).sum(-1, keepdim=True) - 1
    return order_BV.gather(-1, torch.minimum(place_B1, last_B1))[:, 0]


def _scores(logits_NV: Tensor, targets_N: Tensor, rows_N: Tensor, num_sequences: int) -> Tensor:
    """Return per sequence log p summed over its targets, and how many of them are not the most likely token."""
    logits_NV = logits_NV.float()
    chosen_N = logits_NV.gather(-1, targets_N[:, None])[:, 0]
    logprob_N = (chosen_N - logits_NV.logsumexp(-1)).double()
    missed_N = (logits_NV.argmax(-1) != targets_N).double()
    found = torch.zeros((2, num_sequences), dtype=torch.float64, device=logits_NV.device)
    return found.index_add_(1, rows_N, torch.stack([logprob_N, missed_N]))

"""The unit of work of an engine: token ids and what each position should predict."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.loss import IGNORED_LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """B sequences of T tokens; labels are already shifted: labels_BT[b, t] is the target after input_ids_BT[b, t]."""

    input_ids_BT: Tensor
    """int64 token ids."""
    labels_BT: Tensor
    """int64 targets, IGNORED_LABEL where there is none."""
    sample_ids_B: Tensor | None = None
    """int64, on CPU: identity of each sequence within the run, what dropout masks depend on; None in evaluation."""
    documents_BT: Tensor | None = None
    """Integers, on CPU: number of each token's document within its sequence, a document being a run of equal numbers;
    of the whole sequences, also where ranks share their tokens. None is one document a sequence."""

    references_BA: Tensor | None = None
    """float64, on CPU; of a batch of preferences: log-probability under the reference model, in nats, of each answer of
    each sequence, A at most: answers 2n and 2n+1, chosen and rejected, are documents of these numbers. NaN where a
    sequence has no more. None else."""
    answers_BT: Tensor | None = None
    """Integers, on CPU; of a rank's part of preferences: number of each token's answer in its sequence. None else."""
    later_ids_KBT: Tensor | None = None
    """int64; of each depth k of multi-token prediction (from 1): the token k places after each position, 0 at the end;
    None without it."""
    later_labels_KBT: Tensor | None = None
    """int64; what each depth predicts at each position, IGNORED_LABEL where there is nothing."""

    def part_of_sequences(self, part: int, num_parts: int) -> "MicroBatch":
        """Return the n-th of equal parts of every sequence's tokens, with their targets."""
        size, rest = divmod(self.input_ids_BT.shape[1], num_parts)
        assert rest == 0, "a validated config divides evenly"
        mine = slice(part * size, (part + 1) * size)
        return replace(
            self,
            input_ids_BT=self.input_ids_BT[:, mine].contiguous(),
            labels_BT=self.labels_BT[:, mine].contiguous(),
            answers_BT=None if self.references_BA is None else _slice(self.documents_BT, mine),
            later_ids_KBT=None if self.later_ids_KBT is None else self.later_ids_KBT[..., mine],
            later_labels_KBT=None if self.later_labels_KBT is None else self.later_labels_KBT[..., mine],
        )

    def with_later_tokens(self, num_depths: int) -> "MicroBatch":
        """Return it with what multi-token prediction learns from; to be called on whole sequences.

        A target counts where the model's own at that place does, and belongs to the same document as the position.
        """
        ids_BT, labels_BT = self.input_ids_BT, self.labels_BT
        later_ids, later_labels = [], []
        for depth in range(1, num_depths + 1):
            later_ids.append(F.pad(ids_BT[:, depth:], (0, depth)))
            labels = F.pad(labels_BT[:, depth:], (0, depth), value=IGNORED_LABEL)
            if self.documents_BT is not None:
                elsewhere_BT = self.documents_BT[:, depth:] != self.documents_BT[:, :-depth]
                labels = labels.masked_fill(F.pad(elsewhere_BT, (0, depth), value=True), IGNORED_LABEL)
            later_labels.append(labels)
        return replace(self, later_ids_KBT=torch.stack(later_ids), later_labels_KBT=torch.stack(later_labels))

    @property
    def num_targets(self) -> int:
        """Number of what the loss is a mean over: valid targets; of preferences, pairs."""
        if self.references_BA is not None:
            return int((~self.references_BA.isnan()).sum()) // 2
        return int((self.labels_BT != IGNORED_LABEL).sum())

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are computed, padding too."""
        return self.input_ids_BT.numel()


def _slice(documents_BT: Tensor | None, part: slice) -> Tensor:
    assert documents_BT is not None, "the config checks know: answers are told apart by their documents"
    return documents_BT[:, part]

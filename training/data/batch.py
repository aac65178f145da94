"""The unit of work of an engine: token ids and what each position should predict."""

from dataclasses import dataclass, replace

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

    def part_of_sequences(self, part: int, num_parts: int) -> "MicroBatch":
        """Return the n-th of equal parts of every sequence's tokens, with their targets."""
        size, rest = divmod(self.input_ids_BT.shape[1], num_parts)
        assert rest == 0, "a validated config divides evenly"
        mine = slice(part * size, (part + 1) * size)
        return replace(
            self,
            input_ids_BT=self.input_ids_BT[:, mine].contiguous(),
            labels_BT=self.labels_BT[:, mine].contiguous(),
        )

    @property
    def num_tokens(self) -> int:
        """Number of valid targets."""
        return int((self.labels_BT != IGNORED_LABEL).sum())

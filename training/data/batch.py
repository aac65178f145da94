"""The unit of work of an engine: token ids and what each position should predict."""

from dataclasses import dataclass

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

    @property
    def num_tokens(self) -> int:
        """Number of valid targets."""
        return int((self.labels_BT != IGNORED_LABEL).sum())

"""The part of the schema that says how a training stage reads its data and learns from it; see `schema.py`."""

from dataclasses import dataclass
from enum import StrEnum

PREFERENCE_MEASURES = ("accuracy", "margin", "chosen_reward", "rejected_reward")
"""What a step that learns from pairs measures beside its loss, each a mean over pairs."""


class StageKind(StrEnum):
    """What a training stage learns from.

    pretrain, anneal and long_context learn from documents, sft from conversations (targets: the assistant's turns),
    preference from pairs of answers (DPO, arXiv:2305.18290).
    """

    pretrain = "pretrain"
    anneal = "anneal"
    long_context = "long_context"
    sft = "sft"
    preference = "preference"

    @property
    def reads_documents(self) -> bool:
        """Whether it learns from documents."""
        return self not in (self.sft, self.preference)


class Packing(StrEnum):
    """How records are put into samples.

    sequential cuts the stream of documents into windows; best_fit keeps every record whole that fits a sample, and puts
    several into one (arXiv:2404.10830).
    """

    sequential = "sequential"
    best_fit = "best_fit"


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureChange:
    """Another mixture from some point of a training stage on."""

    from_fraction: float
    """Share of the training stage's samples that come before."""
    mixture: dict[str, float]
    """Source name -> weight, in place of the mixture before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedBatches:
    """Consecutive global batches of a training stage's order that are not trained on."""

    first_batch: int
    """Place in the order, counted from 0; `python -m training.data inspect --batch STAGE:PLACE` shows what is in it."""
    num_batches: int
    """How many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig:
    """Direct preference optimisation (arXiv:2305.18290, equation 7)."""

    beta: float = 0.1
    """How strongly the model is held to the reference: the factor of the log-probability ratios."""
    label_smoothing: float = 0.0
    """Probability that a pair is the wrong way round (arXiv:2305.18290v3, conservative DPO; below 0.5)."""
    sft_weight: float = 0.0
    """Weight of the chosen answer's own loss per target token beside (arXiv:2407.21783, section 4.1.4: 0.2)."""

"""Micro-batch and layout -> what its forward learns from."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.config.model_schema import PredictionConfig
from training.config.schema import ParallelConfig, RunConfig
from training.config.stage_schema import PREFERENCE_MEASURES, PreferenceConfig
from training.data.batch import MicroBatch
from training.models.axes import Axes, Axis
from training.models.documents import Documents
from training.models.learning import LaterTokens, LearningPass
from training.models.preference import Pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a training stage's micro-batches are learned by."""

    layout: ParallelConfig
    prediction: PredictionConfig | None
    """Of the model."""
    preference: PreferenceConfig | None
    """Of the training stage; None unless it learns from pairs."""
    sequence: Axis
    """Ranks that share sequences."""

    @property
    def num_losses(self) -> int:
        """How many numbers `summed_losses` gives for a micro-batch."""
        if self.preference is not None:
            return 1 + len(PREFERENCE_MEASURES)
        return 1 if self.prediction is None else 1 + self.prediction.num_blocks

    def means(self, sums: Sequence[float], num_targets: int) -> "StepLosses":
        """Return what a step's numbers are per target, or per pair.

        Args:
            sums: `num_losses` of them, over the global batch.
            num_targets: of the global batch.
        """
        loss, *others = (value / num_targets for value in sums)
        if self.preference is not None:
            return StepLosses(loss=loss, preference=dict(zip(PREFERENCE_MEASURES, others, strict=True)))
        return StepLosses(loss=loss, later_loss=sum(others) / len(others) if others else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLosses:
    """The losses of a step; see `StepResult`."""

    loss: float
    later_loss: float | None = None
    preference: dict[str, float] | None = None


def objective(config: RunConfig, training_stage: str, axes: Axes) -> Objective:
    """Return what a training stage's micro-batches are learned by, for our own engines."""
    return Objective(
        layout=config.layout_of(training_stage),
        prediction=config.model.prediction,
        preference=config.stages[training_stage].preference_settings,
        sequence=axes.sequence,
    )


def learning_pass(batch: MicroBatch, objective: Objective) -> LearningPass:
    """Return the pass of one micro-batch.

    Args:
        batch: tokens and targets of this rank; documents of the whole sequences.
        objective: of the training stage.
    """
    layout = objective.layout
    at_once_tokens = layout.logits_at_once_tokens
    assert at_once_tokens is not None, "only DeepSpeed's PipelineEngine has all logits at once"
    return LearningPass(
        labels_BT=batch.labels_BT,
        loss_chunk_tokens=at_once_tokens,
        documents=None if batch.documents_BT is None else Documents(batch.documents_BT),
        attention=layout.attention,
        later=_later(batch, objective.prediction),
        pairs=_pairs(batch, objective),
    )


def _pairs(batch: MicroBatch, objective: Objective) -> Pairs | None:
    if objective.preference is None:
        return None
    assert batch.references_BA is not None
    assert batch.answers_BT is not None
    return Pairs(
        answers_BT=batch.answers_BT,
        references_BA=batch.references_BA,
        config=objective.preference,
        sequence=objective.sequence,
    )


def _later(batch: MicroBatch, prediction: PredictionConfig | None) -> LaterTokens | None:
    if prediction is None:
        return None
    assert batch.later_ids_KBT is not None
    assert batch.later_labels_KBT is not None
    return LaterTokens(
        ids_KBT=batch.later_ids_KBT,
        labels_KBT=batch.later_labels_KBT,
        weight=prediction.loss_weight / prediction.num_blocks,
    )

"""Micro-batch and layout -> what its forward learns from."""

from training.config.model_schema import PredictionConfig
from training.config.schema import ParallelConfig
from training.data.batch import MicroBatch
from training.models.documents import Documents
from training.models.learning import LaterTokens, LearningPass


def learning_pass(batch: MicroBatch, layout: ParallelConfig, prediction: PredictionConfig | None) -> LearningPass:
    """Return the pass of one micro-batch, for our own engines.

    Args:
        batch: tokens and targets of this rank; documents of the whole sequences.
        layout: of the training stage.
        prediction: of the model; the batch then has its later tokens.
    """
    at_once_tokens = layout.logits_at_once_tokens
    assert at_once_tokens is not None, "only DeepSpeed's PipelineEngine has all logits at once"
    return LearningPass(
        labels_BT=batch.labels_BT,
        loss_chunk_tokens=at_once_tokens,
        documents=None if batch.documents_BT is None else Documents(batch.documents_BT),
        attention=layout.attention,
        later=_later(batch, prediction),
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

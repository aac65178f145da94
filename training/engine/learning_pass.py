"""Micro-batch and layout -> what its forward learns from."""

from training.config.model_schema import MultiTokenConfig
from training.config.schema import ParallelConfig
from training.data.batch import MicroBatch
from training.models.documents import Documents
from training.models.learning import LaterTokens, LearningPass


def learning_pass(batch: MicroBatch, layout: ParallelConfig, multi_token: MultiTokenConfig | None) -> LearningPass:
    """Return the pass of one micro-batch, for our own engines.

    Args:
        batch: tokens and targets of this rank; documents of the whole sequences.
        layout: of the training stage.
        multi_token: of the model; the batch then has its later tokens.
    """
    at_once_tokens = layout.logits_at_once_tokens
    assert at_once_tokens is not None, "only DeepSpeed's PipelineEngine has all logits at once"
    return LearningPass(
        labels_BT=batch.labels_BT,
        loss_chunk_tokens=at_once_tokens,
        documents=None if batch.documents_BT is None else Documents(batch.documents_BT),
        attention=layout.attention,
        later=_later(batch, multi_token),
    )


def _later(batch: MicroBatch, multi_token: MultiTokenConfig | None) -> LaterTokens | None:
    if multi_token is None:
        return None
    assert batch.later_ids_KBT is not None
    assert batch.later_labels_KBT is not None
    return LaterTokens(
        ids_KBT=batch.later_ids_KBT,
        labels_KBT=batch.later_labels_KBT,
        weight=multi_token.loss_weight / multi_token.num_blocks,
    )

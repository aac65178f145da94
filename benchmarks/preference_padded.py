"""Contestant: our DPO without packing: each pair is a row, all rows as long as the longest pair of the step."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.preference_autarky import train_arranged
from benchmarks.turns import Steps
from training.config.schema import RunConfig
from training.data.batch import MicroBatch
from training.models.loss import IGNORED_LABEL


def train(config: RunConfig, training_stage: str, steps: Steps) -> None:
    """Train for ever on the same pairs as `preference_autarky`."""
    train_arranged(config, training_stage, steps, _one_pair_a_row)


def _one_pair_a_row(batch: MicroBatch) -> MicroBatch:
    """Return the pairs of a micro-batch of packs, each as a row of its own."""
    assert batch.documents_BT is not None
    assert batch.references_BA is not None
    input_ids: list[Tensor] = []
    labels: list[Tensor] = []
    documents: list[Tensor] = []
    references: list[Tensor] = []
    for row, of_row in enumerate(batch.references_BA):
        answers_T = batch.documents_BT[row]
        for chosen in range(0, int((~of_row.isnan()).sum()), 2):
            (places,) = torch.nonzero((answers_T == chosen) | (answers_T == chosen + 1), as_tuple=True)
            input_ids.append(batch.input_ids_BT[row, places])
            labels.append(batch.labels_BT[row, places])
            documents.append(answers_T[places] - chosen)
            references.append(of_row[chosen : chosen + 2])
    return MicroBatch(
        input_ids_BT=pad_sequence(input_ids, batch_first=True),
        labels_BT=pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
        documents_BT=pad_sequence(documents, batch_first=True, padding_value=2),
        references_BA=torch.stack(references),
        sample_ids_B=torch.arange(len(references)),
    )

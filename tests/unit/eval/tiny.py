"""Real parts in small: a trained byte-level BPE, held-out documents of text, and a causal torch model with a scorer."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from training.data.batch import IGNORED_LABEL, MicroBatch
from training.data.tokenizer import Tokenizer
from training.engine.base import SequenceScores
from training.parallel.layout import Layout

SENTENCES = [
    "In the beginning the ledger was empty, and every training stage was pending.",
    "The wind blew over the plain — naïve, cold — and the shepherd counted his sheep twice.",
    "A kingdom of numbers rose where the rivers met, and scribes wrote down each one of them.",
    "Nobody knew why the lamp went out, but the children said that the moon had asked for it.",
    "Seven merchants came from the east with salt, copper, cloth and a very old map.",
    "When the gate opened, only those with a lower number of bits were allowed to pass.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A held-out document."""

    id: str
    token_ids: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Data:
    """Held-out documents of one source, "prose"."""

    tokenizer: Tokenizer
    documents: list[Document]

    def held_out_documents(self, source_name: str) -> list[Document]:
        assert source_name == "prose"
        return self.documents


def make_data(num_documents: int = 9, num_sentences: int = 8) -> Data:
    """Return documents made of the sentences in different orders, so that they differ at every position."""
    tokenizer = Tokenizer.train(SENTENCES, vocab_size=300)
    generator = np.random.default_rng(1)
    documents = []
    for i in range(num_documents):
        text = " ".join(SENTENCES[j] for j in generator.integers(len(SENTENCES), size=num_sentences))
        documents.append(Document(id=f"doc-{i}", token_ids=np.array(tokenizer.encode(f"{i} {text}"), dtype="<u2")))
    return Data(tokenizer=tokenizer, documents=documents)


class TinyModel(nn.Module):
    """A recurrent causal language model: position t sees tokens 0…t only."""

    def __init__(self, vocab_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 16, dtype=dtype)
        self.recurrent = nn.GRU(16, 32, batch_first=True, dtype=dtype)
        self.output = nn.Linear(32, vocab_size, dtype=dtype)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        hidden_BTD, _ = self.recurrent(self.embedding(input_ids_BT))
        return self.output(hidden_BTD)


@dataclass
class TinyScorer:
    """Scores with a TinyModel; one process that may stand at any place of a layout."""

    model: TinyModel
    layout: Layout = field(default_factory=lambda: Layout(world_size=1))
    num_calls: int = 0

    def score(self, batch: MicroBatch) -> SequenceScores:
        self.num_calls += 1
        log_probs_BTV = self.model(batch.input_ids_BT).log_softmax(-1)
        valid_BT = batch.labels_BT != IGNORED_LABEL
        labels_BT = batch.labels_BT.clamp(min=0)
        target_BT = log_probs_BTV.gather(-1, labels_BT[..., None])[..., 0].double() * valid_BT
        positions_BT = torch.arange(valid_BT.shape[1]) * valid_BT
        last_B = positions_BT.argmax(-1)
        return SequenceScores(
            logprob_B=target_BT.sum(-1),
            num_tokens_B=valid_BT.sum(-1),
            next_token_B=log_probs_BTV[torch.arange(len(last_B)), last_B].argmax(-1),
        )


def make_model(vocab_size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> TinyModel:
    """Return an untrained model with large weights, so that its predictions differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    model = TinyModel(vocab_size, dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype) * 0.5)
    return model

"""Real parts in small: a trained byte-level BPE, held-out documents of text, and an engine over a plain decoder."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from eval.harness import EvalReport, Subject, measure
from eval.live_model import LiveModel
from eval.lm import EngineLM, InferenceEngine
from eval.text_tokenizers import RunTokenizer
from training.config.eval_schema import SuiteConfig
from training.config.schema import ModelConfig
from training.data.tokenizer import Tokenizer, train_tokenizer
from training.engine.inference import Inference
from training.models.decoder import Decoder, decoder_layers
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

    @property
    def is_target(self) -> np.ndarray:
        return np.ones(len(self.token_ids), dtype=bool)


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
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder), SENTENCES, vocab_size=300)
        tokenizer = Tokenizer.load(Path(folder))
    generator = np.random.default_rng(1)
    documents = []
    for i in range(num_documents):
        text = " ".join(SENTENCES[j] for j in generator.integers(len(SENTENCES), size=num_sentences))
        documents.append(Document(id=f"doc-{i}", token_ids=np.array(tokenizer.encode(f"{i} {text}"), dtype="<u2")))
    return Data(tokenizer=tokenizer, documents=documents)


def make_model(vocab_size: int, seed: int = 0) -> Decoder:
    """Return an untrained decoder with large weights, so that its predictions differ clearly."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=32,
        max_sequence_length=512,
        rope_theta=100.0,
        tied_embeddings=True,
        init_std=0.6,
    )
    return Decoder(decoder_layers(config, seed=seed)).eval()


class TinyEngine(Inference):
    """Infers with a plain decoder, as engines do; one process that may stand at any place of a layout."""

    def __init__(self, model: Decoder, layout: Layout | None = None) -> None:
        self.model = model
        self.layout = layout or Layout(world_size=1)
        self.num_calls = 0
        self.num_positions = 0
        """Tokens that were run, padding among them."""

    def keep_alive(self) -> None:
        """Nobody watches."""

    def _modules(self) -> list[Decoder]:
        return [self.model]

    def _infer(self, input_ids_BT: Tensor) -> Tensor:
        self.num_calls += 1
        self.num_positions += input_ids_BT.numel()
        return self.model(input_ids_BT)

    def _tell(self, found: Tensor | None, *, num_rows: int, num_columns: int) -> Tensor:
        assert found is not None
        assert found.shape == (num_rows, num_columns)
        return found


def make_lm(engine: InferenceEngine, data: Data, batch_sequences: int = 4) -> EngineLM:
    """Return an engine as a language model."""
    return EngineLM(
        engine=engine,
        speller=RunTokenizer(data.tokenizer),
        eos_id=data.tokenizer.eos_id,
        batch_sequences=batch_sequences,
    )


def report_of(lm: EngineLM, data: Data, suite: SuiteConfig, prepared_root: Path = Path("prepared")) -> EvalReport:
    """Return what a suite, called "quick", finds in a model."""
    tokenizer = RunTokenizer(data.tokenizer)
    live = LiveModel(lm, tokenizer, prefix_id=tokenizer.eos_id, max_length=suite.max_length or 512)
    return measure(lm, live, Subject(data=data, prepared_root=prepared_root), suite, suite_name="quick")

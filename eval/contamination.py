"""How much of what a suite measures stands in the data that the model was trained on.

The training documents of the prepared data are decoded and searched once, batch by batch; what was found is kept as

    <prepared_root>/contamination/<start of the data's fingerprint>/<benchmark>-<start of the key>.json

so that later evaluations, and other runs on the same data, read it. Cost: docs/evaluation_tasks.md.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.data import EvalData, suite_conversations, suite_documents
from eval.tasks.assistant_turns import ASSISTANT_TURNS, turns
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import MULTIPLE_CHOICE, make_questions
from training.config.benchmarks import BENCHMARKS
from training.config.eval_schema import SuiteConfig
from training.data.benchmark_passages import Passages
from training.data.shards import PreparedData
from training.data.stream import RecordStream
from training.data.text_overlap import NGRAM_WORDS, RULE_VERSION, OverlapSearch
from training.durable_files import write_durably
from training.errors import StorageError
from training.plain_files import read_json, typed

_LOG = logging.getLogger(__name__)
_BATCH_TOKENS = 2**18
"""Decoded and searched at a time: a second or less, and tens of MB."""
_OVERLAPPING_TOKENS = 2**10
"""That two pieces of a document longer than a batch share, so that no n-gram is cut in two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What a file keeps."""

    benchmark: str
    version: int
    """Of the benchmark, or of the task."""
    data_fingerprint: str
    key: str
    """Hash of all that the overlaps follow from."""
    overlaps: dict[str, float]
    """Item -> share of its n-grams that stand in the training documents."""
    ngram_words: int = NGRAM_WORDS


def held_out_passages(data: EvalData, suite: SuiteConfig) -> dict[str, dict[str, list[str]]]:
    """Return task -> passages of what a suite measures on held-out documents, as far as the model reads them.

    Documents are held out one by one; another that is nearly the same may be trained on.
    """
    decode, found = data.tokenizer.decode, {}
    if suite.held_out_source is not None:
        documents = suite_documents(data, suite)
        found[HELD_OUT.name] = {d.id: [decode(d.token_ids[: suite.document_tokens].tolist())] for d in documents}
        if suite.multiple_choice_items > 0:
            questions = make_questions(documents, suite.multiple_choice_items)
            found[MULTIPLE_CHOICE.name] = {q.id: [decode([*q.context_ids, *q.choices_ids[q.right]])] for q in questions}
    if suite.conversation_source is not None:
        for one in suite_conversations(data, suite):
            ids, is_target = one.token_ids[: suite.document_tokens], one.is_target[: suite.document_tokens]
            # What is scored; the prompts of many conversations begin alike.
            said = [decode(ids[start:end].tolist()) for start, end in turns(is_target)]
            found.setdefault(ASSISTANT_TURNS.name, {})[one.id] = said
    return found


def find_overlaps(
    data: PreparedData, root: Path, groups: Mapping[str, Passages], *, keep_alive: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Return benchmark or task -> item -> share of its n-grams that stand in the training documents; kept under `root`.

    All sources' training documents are searched, also those that the run has not reached yet.

    Args:
        data: what the model was trained on.
        root: the folder of prepared data.
        groups: what is looked for.
        keep_alive: is called after every batch of documents.

    Raises:
        DataError: the prepared data is damaged.
    """
    keys = {name: _key(data.fingerprint, name, passages) for name, passages in groups.items()}
    folder = root / "contamination" / data.fingerprint[:16]
    paths = {name: folder / f"{name}-{key[:16]}.json" for name, key in keys.items()}
    found = {name: _read(paths[name], keys[name], groups[name]) for name in groups}
    unknown = {name: groups[name] for name, overlaps in found.items() if overlaps is None}
    if unknown:
        search = OverlapSearch(unknown)
        for texts in training_texts(data):
            search.look_in(texts)
            keep_alive()
        for name, overlaps in search.overlaps().items():
            found[name] = overlaps
            searched = Searched(
                benchmark=name,
                version=_version(name),
                data_fingerprint=data.fingerprint,
                key=keys[name],
                overlaps=overlaps,
            )
            try:
                write_durably(paths[name], json.dumps(asdict(searched), indent=1, ensure_ascii=False) + "\n")
            except StorageError as error:  # the evaluation needs the numbers, not the file
                _LOG.warning("what was found of %s in the training data is not kept for others: %s", name, error)
    return {name: overlaps for name, overlaps in found.items() if overlaps is not None}


def training_texts(data: PreparedData) -> Iterator[list[str]]:
    """Yield the texts of all training documents in batches; a document longer than a batch comes in pieces."""
    for name in sorted(data.manifest.sources):
        stream = data.train(name)
        batch: list[list[int]] = []
        num_tokens = 0
        for start, end in _bounds(stream):
            for first in range(start, max(end - _OVERLAPPING_TOKENS, start + 1), _BATCH_TOKENS - _OVERLAPPING_TOKENS):
                piece = stream.tokens(first, min(first + _BATCH_TOKENS, end)).tolist()
                if num_tokens + len(piece) > _BATCH_TOKENS:
                    yield data.tokenizer.decode_batch(batch)
                    batch, num_tokens = [], 0
                batch.append(piece)
                num_tokens += len(piece)
        if batch:
            yield data.tokenizer.decode_batch(batch)


def _bounds(stream: RecordStream) -> Iterator[tuple[int, int]]:
    """Yield the places at which each record begins and ends, shard by shard."""
    end = 0
    for number in range(stream.num_shards):
        for length in stream.lengths_of_shard(number)[1].tolist():
            yield end, end + length
            end += length


def mark(items: Sequence[dict[str, Any]], overlaps: Mapping[str, float]) -> dict[str, float]:
    """Give a report's items their overlap, and return how many there are, how many have one, and the mean overlap."""
    for item in items:
        item["overlap"] = overlaps[item["id"]]
    contaminated = sum(item["overlap"] > 0 for item in items)
    return {
        "items": float(len(items)),
        "contaminated": float(contaminated),
        "share": contaminated / len(items),
        "mean_overlap": sum(item["overlap"] for item in items) / len(items),
    }


def _version(name: str) -> int:
    versions = {task.name: task.version for task in (HELD_OUT, MULTIPLE_CHOICE, ASSISTANT_TURNS)}
    return versions[name] if name in versions else BENCHMARKS[name].version


def _key(fingerprint: str, name: str, passages: Passages) -> str:
    values = [RULE_VERSION, NGRAM_WORDS, fingerprint, name, _version(name), passages]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _read(path: Path, key: str, passages: Passages) -> dict[str, float] | None:
    """Return what a file says of exactly these items in this data."""
    try:
        searched = typed(Searched, read_json(path))
    except (OSError, ValueError):
        return None  # there is none that could be used: it is made, and written over this one
    whole = set(searched.overlaps) == set(passages) and all(0.0 <= v <= 1.0 for v in searched.overlaps.values())
    return searched.overlaps if searched.key == key and whole else None

"""Tokens per second of our loader beside Hugging Face `datasets`: the same rows in the same random order, in turns.

One thread, everything in the page cache. The Arrow file holds rows that are ready: windows of T + 1 tokens, or packs
<<<<<<< HEAD
with their targets and document numbers. Ours cuts its rows out of the stream of tokens, and finds out which come next.
=======
with their targets and document numbers. Ours cuts its rows out of the stream of tokens, and finds out
which ones are next.
>>>>>>> dataD
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.tables import spread, table
from training.config.load import compose
from training.data.loader import StageLoader
from training.data.prepare import ensure
from training.data.units import Units

_TOKENS, _BATCH = 1024, 8
_OURS = "Autarky, StageLoader"
_MODES = {
    "windows": ("pretrain", "sequential", False),
    "best-fit packs": ("long_context", "best_fit", True),
}
"""Name -> kind of training stage, packing, whether documents are kept apart."""

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderContest:
    """What every contestant took."""

    seconds: dict[str, dict[str, list[float]]]
    """What is read -> contestant -> processor seconds per batch of each round."""
    num_rows: dict[str, int]
    """What is read -> rows of an epoch."""
    are_equal: bool
    """Whether every contestant gave the same tensors for the first batch of each."""


def compete_in_loading(
    overrides: Sequence[str], root: Path, *, num_rounds: int, num_batches: int, say: Callable[[str], None]
) -> LoaderContest:
    """Return the seconds of all contestants; the order changes with every round.

    Args:
        overrides: config whose data is prepared.
        root: a folder for Arrow files.
        num_rounds: turns of each, after one that warms up.
        num_batches: of each turn.
        say: is told what is done.
    """
    torch.set_num_threads(1)
    seconds: dict[str, dict[str, list[float]]] = {}
    num_rows, are_equal = {}, True
    for mode, (kind, packing, masks) in _MODES.items():
        loader = _loader(overrides, kind, packing, masks)
        units = loader.order.units(0)
        say(f"loading: {mode}, writing {units.num_units:,} rows as Arrow")
        arrow = _arrow(units, root / mode.replace(" ", "-"), is_packed=packing == "best_fit")
        rows = [
            loader.order.places(np.array(loader.batch_samples(batch)))[:, 1].tolist()
            for batch in range((num_rounds + 1) * num_batches)
        ]
        contestants = _contestants(loader, arrow, rows)
        first = [next(batches(range(1))) for batches in contestants.values()]
        are_equal &= all(_same(first[0], other) for other in first[1:])
        seconds[mode] = {name: [] for name in contestants}
        num_rows[mode] = units.num_units
        for number in range(num_rounds + 1):
            # Every contestant of a round reads the same rows, and each round others.
            which = range(number * num_batches, (number + 1) * num_batches)
            turns = list(contestants.items())
            for name, batches in turns if number % 2 == 0 else turns[::-1]:
                say(f"loading: {mode}, round {number} of {num_rounds}: {name}")
                begun = time.process_time()
                count = sum(1 for _ in batches(which))
                if number:
                    seconds[mode][name].append((time.process_time() - begun) / count)
    return LoaderContest(seconds=seconds, num_rows=num_rows, are_equal=are_equal)


def loading(contest: LoaderContest) -> list[str]:
    """Return the page's part about it."""
    rows, medians = [], []
    for mode, of_mode in contest.seconds.items():
        for name, values in of_mode.items():
            ratios = [theirs / ours for ours, theirs in zip(of_mode[_OURS], values, strict=True)]
            rates = [_BATCH * _TOKENS / value / 1e6 for value in values]
            rows.append([mode, name, spread(rates, ".2f"), spread(ratios, ".2f")])
            medians += [statistics.median(ratios)] if name != _OURS else []
    counted = ", ".join(f"{count:,} {mode}" for mode, count in contest.num_rows.items())
    return [
        "### Loading",
        "",
        f"The same documents as rows of {_TOKENS:,} tokens ({counted} an epoch), {_BATCH} rows a batch as int64 "
        "tensors, in the random order that training would have; processor time of one thread, files in the page "
        "cache. The Arrow file has rows that are ready: windows of T + 1 tokens, or packs with input, target and "
        "document number of each place. Ours cuts rows out of the stream and computes which ones come next; the "
        "others were given a list of them. DataLoader: torch's, without worker processes, as the Trainer uses it by "
        "default.",
        "",
        *table(["", "", "million tokens/s", "ours ÷ it"], rows),
        "",
        f"At least as fast as each: {'yes' if min(medians) >= 1.0 else 'no'}. All gave "
        f"{'the same' if contest.are_equal else 'NOT the same'} tensors.",
    ]


def _loader(overrides: Sequence[str], kind: str, packing: str, masks: bool) -> StageLoader:
    stage = "stages.pretrain"
    config = compose(
        [
            *overrides,
            f"{stage}.kind={kind}",
            f"+{stage}.packing={packing}",
            f"+{stage}.document_mask={str(masks).lower()}",
            f"{stage}.sequence_length={_TOKENS}",
            f"{stage}.global_batch_sequences={_BATCH}",
            f"{stage}.micro_batch_sequences={_BATCH}",
            f"{stage}.tokens=10_000_000_000",
        ]
    )
    return StageLoader(ensure(config.data), config, "pretrain")


def _arrow(units: Units, folder: Path, *, is_packed: bool) -> Dataset:
    """Return all rows of an epoch, memory-mapped; int64, so that nothing has to be converted when they are read."""
    names = ("input_ids", "labels", "documents") if is_packed else ("tokens",)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for unit in range(units.num_units):
            row = units.row(unit)
            if is_packed:
                yield {"input_ids": row.input_ids_T, "labels": row.labels_T, "documents": row.documents_T}
            else:
                yield {"tokens": np.append(row.input_ids_T, row.labels_T[-1])}

    features = Features({name: List(Value("int64")) for name in names})
    written = Dataset.from_generator(rows, features=features, cache_dir=str(folder))
    assert isinstance(written, Dataset)
    return written.with_format("torch")


def _contestants(
    loader: StageLoader, arrow: Dataset, rows: Sequence[Sequence[int]]
) -> dict[str, Callable[[range], Iterator[Batch]]]:
    """Return name -> what yields the batches with these numbers; `rows` of the Arrow file are each batch's."""

    def ours(batches: range) -> Iterator[Batch]:
        for batch in batches:
            (micro_batch,) = loader.micro_batches(batch, replica=0, num_replicas=1)
            found = {"input_ids": micro_batch.input_ids_BT, "labels": micro_batch.labels_BT}
            yield found if micro_batch.documents_BT is None else {**found, "documents": micro_batch.documents_BT}

    def one_call(batches: range) -> Iterator[Batch]:
        for batch in batches:
            yield _cut(arrow[rows[batch]])

    def data_loader(batches: range) -> Iterator[Batch]:
        which = [list(rows[batch]) for batch in batches]
        for batch in DataLoader(arrow, batch_sampler=which):  # type: ignore[arg-type]
            yield _cut(batch)

    def row_by_row(batches: range) -> Iterator[Batch]:
        for batch in batches:
            read = [arrow[row] for row in rows[batch]]
            yield _cut({name: torch.stack([row[name] for row in read]) for name in read[0]})

    return {
        _OURS: ours,
        "datasets, one call per batch": one_call,
        "datasets, DataLoader": data_loader,
        "datasets, row by row": row_by_row,
    }


def _cut(batch: Mapping[str, Tensor]) -> Batch:
    """Return input and targets of windows; packs have them."""
    if "tokens" not in batch:
        return dict(batch)
    return {"input_ids": batch["tokens"][:, :-1], "labels": batch["tokens"][:, 1:]}


def _same(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

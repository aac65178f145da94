"""Pairs of answers made of text that is on every machine: functions of Python files.

The prompt is a function's head and docstring, the chosen answer its body, the rejected one the body of another
function. Their lengths are those of real code: most are short, some are long.
"""

import ast
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.source_texts import overrides_for, python_files, read_text
from training.data.loader import StageLoader

SOURCE = "pairs"
Pair = dict[str, Any]


def write_pairs(path: Path, num_pairs: int) -> None:
    """Write a JSON Lines file of pairs, as sources of form preferences have them."""
    functions: list[tuple[str, str]] = []
    for file in python_files():
        functions += _functions(read_text(file))
        if len(functions) > num_pairs:
            break
    with path.open("w", encoding="utf-8") as lines:
        for number, ((head, body), (_, other)) in enumerate(pairwise(functions[: num_pairs + 1])):
            pair = {
                "id": f"pair-{number}",
                "prompt": [{"role": "user", "content": f"Complete this function:\n\n{head}"}],
                "chosen": [{"role": "assistant", "content": body}],
                "rejected": [{"role": "assistant", "content": other}],
            }
            lines.write(json.dumps(pair, ensure_ascii=False) + "\n")


def read_pairs(path: Path) -> dict[str, Pair]:
    """Return the pairs of such a file by id."""
    with path.open(encoding="utf-8") as lines:
        return {pair["id"]: pair for pair in map(json.loads, lines)}


def preference_overrides(
    path: Path, prepared_root: Path, *, model: Sequence[str], sequence_length: int, num_packs: int, num_steps: int
) -> list[str]:
    """Return the config of a training stage that learns from the pairs of a file.

    Args:
        path: the file.
        prepared_root: where it is prepared.
        model: overrides that choose the model and its tokenizer.
        sequence_length: tokens of a pack.
        num_packs: packs of an optimizer step.
        num_steps: optimizer steps of the training stage.
    """
    stage = "stages.pretrain"
    return [
        *overrides_for(SOURCE, path, form="preferences"),
        *model,
        f"data.prepared_root={prepared_root}",
        f"{stage}.kind=preference",
        f"{stage}.sequence_length={sequence_length}",
        f"{stage}.global_batch_sequences={num_packs}",
        f"{stage}.micro_batch_sequences={num_packs}",
        f"{stage}.tokens={num_steps * num_packs * sequence_length}",
        "schedule=constant",
    ]


def records_of(loader: StageLoader, step: int) -> list[int]:
    """Return the records of a step's answers in the order of its packs, each chosen one before its rejected one."""
    pieces = [piece for sample in loader.batch_samples(step) for piece in loader.sample(sample).pieces]
    return [piece.record for piece in pieces]


def answer_lengths(loader: StageLoader, step: int) -> np.ndarray:
    """Return the tokens of each of a step's answers, prompt included."""
    (stream,) = (loader.order.units(place).stream for place in range(len(loader.order.sources)))
    records = np.array(records_of(loader, step))
    return stream.starts(records + 1) - stream.starts(records)


def _functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield (head with docstring, body) of each function of a Python file that has both."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # files that test the parser are not meant to be parsed
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None or len(node.body) < 2:
            continue
        docstring_end = node.body[0].end_lineno
        assert docstring_end is not None
        head, body = "".join(lines[node.lineno - 1 : docstring_end]), "".join(lines[docstring_end : node.end_lineno])
        if body.strip():
            # An answer that begins with white space is split into tokens differently by TRL, which joins it to the
            # line end before.
            yield head.rstrip(), textwrap.dedent(body).strip()

"""Training data from the leaderboard's gold answers, executed in the real simulated systems.

    python -m eval.workflows.trajectories --out DIR [--root prepared] [--compact] [--held-out-fraction 0.2]

Writes DIR/single/ (one request, one answer with calls) and DIR/workflows/ (many turns, with the results of the calls):

    conversations.jsonl            to train on: {"id", "messages"}
    preferences.jsonl              to train on: {"id", "prompt", "chosen", "rejected"}
    held_out_conversations.jsonl   of items that are in neither of the others, for validation

and DIR/held_out_ids.json. Prompts are word for word what evaluation asks (benchmarks bfcl_*, single turns with chat:
true; --compact goes with compact: true), and an evaluation with the same held_out_fraction asks only what is held out
here. The items have to be prepared: python -m eval.prepare bfcl_simple bfcl_multiple bfcl_parallel bfcl_multi_turn.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.benchmarks.bfcl import prompt, target
from eval.benchmarks.held_out_items import is_held_out_item
from eval.workflows.gold import gold_path
from eval.workflows.preference_pairs import Record, single_turn_pairs, workflow_pairs
from eval.workflows.simulator import Simulator, Systems
from eval.workflows.tasks import BENCHMARK, WorkflowTask, read_tasks
from training.config.benchmarks import items_file, missing
from training.data.chat import ChatTemplate, EncodedConversation
from training.durable_files import write_durably
from training.errors import AutarkyError, ConfigError, DataError, ExitCode

SINGLE_TURN = ("bfcl_simple", "bfcl_multiple", "bfcl_parallel")


@dataclass(kw_only=True, slots=True)
class Trajectories:
    """Records of one source."""

    conversations: list[Record] = field(default_factory=list)
    preferences: list[Record] = field(default_factory=list)
    held_out_conversations: list[Record] = field(default_factory=list)
    held_out_ids: list[str] = field(default_factory=list)

    def add(self, item_id: str, messages: list[Record], pairs: Iterator[Record], *, held_out: bool) -> None:
        """Add what an item gives; one that is held out gives no pairs."""
        conversation = {"id": f"bfcl/{item_id}", "messages": messages}
        if held_out:
            self.held_out_ids.append(item_id)
            self.held_out_conversations.append(conversation)
        else:
            self.conversations.append(conversation)
            self.preferences += pairs


def main(argv: Sequence[str]) -> ExitCode:
    """Write the files and print what is in them; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.workflows.trajectories", description="Training data from gold answers."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--root", type=Path, default=Path("prepared"), help="folder of prepared benchmarks")
    parser.add_argument("--compact", action="store_true", help="functions as a line each, not as JSON schemas")
    parser.add_argument("--held-out-fraction", type=float, default=0.2, help="share of items kept out of training")
    parser.add_argument("--tokenizer", type=Path, help="Hugging Face directory whose tokens the table counts")
    options = parser.parse_args(argv)
    fraction: float = options.held_out_fraction
    try:
        if not 0.0 < fraction < 1.0:
            remedy = "--held-out-fraction 0.2 keeps a fifth"
            raise ConfigError("--held-out-fraction", fraction, "it is a share, more than 0 and less than 1", remedy)
        chat = ChatTemplate.load(options.tokenizer) if options.tokenizer else None
        if faults := missing(options.root, [*SINGLE_TURN, BENCHMARK]):
            raise DataError("\n".join(faults))
        tasks = read_tasks(options.root)
        with Simulator(options.root) as systems:
            made = {
                "single": single_turn_trajectories(options.root, fraction=fraction, compact=options.compact),
                "workflows": workflow_trajectories(tasks, systems, fraction=fraction, compact=options.compact),
            }
        write(options.out, made, fraction=fraction)
        for line in table(made, chat):
            print(line)  # noqa: T201
    except AutarkyError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return ExitCode.DONE


def single_turn_trajectories(root: Path, *, fraction: float, compact: bool) -> Trajectories:
    """Return the records of requests with one answer.

    Args:
        root: folder of prepared benchmarks.
        fraction: share of the items that is held out.
        compact: see `call_text.instructions`.
    """
    made = Trajectories()
    for name in SINGLE_TURN:
        for line in items_file(root, name).read_text(encoding="utf-8").splitlines():
            doc = json.loads(line)
            asked, answered = prompt(doc, compact=compact), target(doc)
            made.add(
                doc["id"],
                [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}],
                single_turn_pairs(doc, asked, answered),
                held_out=is_held_out_item(doc, fraction),
            )
    return made


def workflow_trajectories(
    tasks: Sequence[WorkflowTask], systems: Systems, *, fraction: float, compact: bool
) -> Trajectories:
    """Return the records of workflows: the conversation of each task, and a pair for each of its turns with calls.

    Args:
        tasks: all of them.
        systems: run the calls.
        fraction: share of the tasks that is held out.
        compact: see `call_text.instructions`.

    Raises:
        DataError: a task is not solved by its own answer.
    """
    made = Trajectories()
    for task in tasks:
        try:
            path = gold_path(task, systems, compact=compact)
        except ValueError as error:
            remedy = f"prepare it again: python -m eval.prepare {BENCHMARK}"
            raise DataError(f"{error}\n  -> {remedy}") from error
        made.add(
            task.id,
            [dict(message) for message in path.messages],
            workflow_pairs(task, path, systems),
            held_out=is_held_out_item({"id": task.id}, fraction),
        )
    return made


def write(directory: Path, made: Mapping[str, Trajectories], *, fraction: float) -> None:
    """Write all files, each whole or not at all.

    Raises:
        StorageError: they cannot be written.
    """
    for name, source in made.items():
        for file, records in _files(source):
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            write_durably(directory / name / f"{file}.jsonl", "".join(lines))
    ids = {name: source.held_out_ids for name, source in made.items()}
    held_out = {"held_out_fraction": fraction, "held_out_ids": ids}
    write_durably(directory / "held_out_ids.json", json.dumps(held_out, indent=1) + "\n")


def table(made: Mapping[str, Trajectories], chat: ChatTemplate | None) -> list[str]:
    """Return a table of how many records there are and, with a tokenizer's template, how long they are."""
    header = f"{'source':10} {'file':24} {'records':>8}"
    if chat is not None:
        header += f" {'tokens':>10} {'median':>7} {'90%':>7} {'longest':>8} {'targets':>9}"
    lines = [header]
    for name, source in made.items():
        for file, records in _files(source):
            line = f"{name:10} {file:24} {len(records):8,}"
            if chat is not None and records:
                encoded = [one for record in records for one in _encoded(chat, record)]
                sizes = [len(one.token_ids) for one in encoded]
                median, most = np.percentile(sizes, [50, 90])
                targets = sum(sum(one.is_target) for one in encoded)
                line += f" {sum(sizes):10,} {median:7.0f} {most:7.0f} {max(sizes):8,} {targets:9,}"
            lines.append(line)
    return lines


def _files(source: Trajectories) -> Iterable[tuple[str, list[Record]]]:
    return (
        ("conversations", source.conversations),
        ("preferences", source.preferences),
        ("held_out_conversations", source.held_out_conversations),
    )


def _encoded(chat: ChatTemplate, record: Record) -> Sequence[EncodedConversation]:
    return [chat.encode_conversation(record)] if "messages" in record else chat.encode_preference(record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Pairs of answers to the same prompt: the gold one, and a wrong one that was found wrong as evaluation finds it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.benchmarks.bfcl import score
from eval.benchmarks.call_match import read_calls
from eval.function_calls import parse_calls
from eval.workflows.calls import safe_call
from eval.workflows.gold import GoldPath
from eval.workflows.simulator import CallFailed, Systems
from eval.workflows.tasks import WorkflowTask
from eval.workflows.wrong_answers import wrong_answers
from training.data.call_text import Call, written_calls

Record = dict[str, Any]


def single_turn_pairs(doc: Mapping[str, Any], asked: str, answered: str) -> Iterator[Record]:
    """Yield a pair for each kind of wrong answer to a request that the benchmark's own scoring finds wrong."""
    calls = read_calls(answered)
    assert calls is not None, "a right answer is a list of calls"
    schemas = {schema["name"]: schema for schema in json.loads(doc["functions"])}
    for kind, wrong in wrong_answers(doc["id"], calls, schemas, []).items():
        if score(doc, [wrong])["acc"] == 0.0:
            yield _pair(f"bfcl/{doc['id']}/{kind}", [{"role": "user", "content": asked}], answered, wrong)


def workflow_pairs(task: WorkflowTask, path: GoldPath, systems: Systems) -> Iterator[Record]:
    """Yield a pair for each turn with calls; kinds take turns, and what solves the task all the same is no pair."""
    gold: list[list[list[str]]] = [[] for _ in task.turns]
    for turn in path.turns:
        gold[turn.turn] = [_steps(written_calls(turn.calls), task)]
    earlier: list[Call] = []
    for turn in path.turns:
        name = f"{task.id}/turn{turn.turn}"
        wrong = wrong_answers(name, turn.calls, task.schemas, earlier)
        earlier += turn.calls
        kinds = sorted(wrong)
        first = (int(task.id.rpartition("_")[2]) + turn.turn) % len(kinds)
        for kind in [*kinds[first:], *kinds[:first]]:
            steps = [_steps(wrong[kind], task)]
            if _fails(task, [*gold[: turn.turn], steps if steps[0] else [], *gold[turn.turn + 1 :]], systems):
                prompt: list[Record] = [dict(message) for message in path.messages[: turn.num_messages]]
                yield _pair(f"bfcl/{name}/{kind}", prompt, written_calls(turn.calls), wrong[kind])
                break


def _pair(name: str, prompt: list[Record], chosen: str, rejected: str) -> Record:
    return {
        "id": name,
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _steps(answer: str, task: WorkflowTask) -> list[str]:
    """Return the calls of an answer that would be run; see Conversation."""
    found = []
    for call in parse_calls(answer) or []:
        try:
            found.append(safe_call(call, task.schemas))
        except ValueError:
            continue  # the model is told so, and nothing is run
    return found


def _fails(task: WorkflowTask, turns: Sequence[Sequence[Sequence[str]]], systems: Systems) -> bool:
    try:
        return systems.fault(task, turns) is not None
    except CallFailed:
        return True

"""Training data from gold answers: what evaluation would ask and accept, and nothing of what it measures on."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.bfcl import score
from eval.benchmarks.held_out_items import is_held_out_item
from eval.function_calls import parse_calls
from eval.workflows.conversation import Conversation
from eval.workflows.gold import gold_path, named_calls
from eval.workflows.simulator import Simulator
from eval.workflows.tasks import WorkflowTask, read_tasks
from eval.workflows.trajectories import (
    SINGLE_TURN,
    Trajectories,
    main,
    single_turn_trajectories,
    table,
    workflow_trajectories,
    write,
)
from eval.workflows.wrong_answers import wrong_answers
from training.config.benchmarks import items_file
from training.data.call_text import Call, written_calls
from training.data.chat import ChatTemplate
from training.errors import ExitCode

FRACTION = 0.2


@pytest.fixture(scope="module")
def tasks(prepared_benchmarks: Path) -> list[WorkflowTask]:
    """The first ten workflows, each in all four categories."""
    return read_tasks(prepared_benchmarks)[:40]


@pytest.fixture(scope="module")
def systems(prepared_benchmarks: Path) -> Iterator[Simulator]:
    with Simulator(prepared_benchmarks) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def workflows(tasks: list[WorkflowTask], systems: Simulator) -> Trajectories:
    return workflow_trajectories(tasks, systems, fraction=FRACTION, compact=True)


@pytest.fixture(scope="module")
def single(prepared_benchmarks: Path) -> Trajectories:
    return single_turn_trajectories(prepared_benchmarks, fraction=FRACTION, compact=True)


@pytest.mark.parametrize("compact", [False, True])
def test_a_gold_path_is_the_conversation_that_evaluation_has(
    tasks: list[WorkflowTask], systems: Simulator, compact: bool
) -> None:
    for task in tasks[:12]:
        messages = gold_path(task, systems, compact=compact).messages
        talk = Conversation(task, systems, compact=compact)
        for message in messages:
            if message["role"] == "assistant":
                talk.take(message["content"])
        assert talk.messages == messages
        assert (talk.done, talk.fault) == (True, None)


def test_every_item_is_in_training_or_held_out_and_never_in_both(
    single: Trajectories, workflows: Trajectories, prepared_benchmarks: Path, tasks: list[WorkflowTask]
) -> None:
    def asked(records: list[dict[str, Any]], field: str = "messages") -> set[str]:
        return {record[field][0]["content"].rpartition("Request: ")[2] for record in records}

    docs = [
        json.loads(line)
        for name in SINGLE_TURN
        for line in items_file(prepared_benchmarks, name).read_text(encoding="utf-8").splitlines()
    ]
    assert len(single.conversations) + len(single.held_out_conversations) == len(docs)
    assert single.held_out_ids == [doc["id"] for doc in docs if is_held_out_item(doc, FRACTION)]
    assert 0.1 < len(single.held_out_ids) / len(docs) < 0.3
    assert asked(single.held_out_conversations).isdisjoint(asked(single.conversations))
    assert asked(single.preferences, "prompt") <= asked(single.conversations)
    trained = {record["id"].split("/")[1] for record in [*workflows.conversations, *workflows.preferences]}
    assert trained | set(workflows.held_out_ids) == {task.id for task in tasks}
    numbers = [{name.rpartition("_")[2] for name in names} for names in (trained, workflows.held_out_ids)]
    assert numbers[1], "some are held out"
    assert numbers[0].isdisjoint(numbers[1]), "all categories of a workflow go the same way"


def test_of_a_pair_only_the_chosen_answer_is_right(
    single: Trajectories, workflows: Trajectories, prepared_benchmarks: Path
) -> None:
    docs = {}
    for name in SINGLE_TURN:
        for line in items_file(prepared_benchmarks, name).read_text(encoding="utf-8").splitlines():
            docs[json.loads(line)["id"]] = json.loads(line)
    for pair in single.preferences[::7]:
        doc = docs[pair["id"].split("/")[1]]
        assert score(doc, [pair["chosen"][0]["content"]])["acc"] == 1.0
        assert score(doc, [pair["rejected"][0]["content"]])["acc"] == 0.0
    kinds = {"other_function", "missing_argument", "other_value", "prose", "cut_off"}
    for source in (single, workflows):
        ids = [pair["id"] for pair in source.preferences]
        assert len(set(ids)) == len(ids)
        assert {name.rpartition("/")[2] for name in ids} == kinds


def test_records_with_tools_and_tool_calls_are_encoded_as_the_text_that_evaluation_shows(
    single: Trajectories, prepared_benchmarks: Path, smollm2: Path, tasks: list[WorkflowTask], systems: Simulator
) -> None:
    chat = ChatTemplate.load(smollm2)
    for task in tasks[:8]:
        path = gold_path(task, systems)
        messages: list[dict[str, Any]] = [dict(message) for message in path.messages]
        structured = [dict(message) for message in messages]
        structured[0] = {"role": "system", "content": messages[0]["content"].partition("]\n\nIn each turn")[2]}
        structured[0]["content"] = "In each turn" + structured[0]["content"]
        for turn in path.turns:
            calls = [{"function": {"name": name, "arguments": dict(arguments)}} for name, arguments in turn.calls]
            structured[turn.num_messages] = {"role": "assistant", "tool_calls": calls}
        record = {"messages": structured, "tools": [dict(schema) for schema in task.shown_at_first]}
        assert chat.encode_conversation(record) == chat.encode_conversation({"messages": messages})


def test_prompts_of_real_conversations_are_tokenised_as_at_inference(
    single: Trajectories, workflows: Trajectories, smollm2: Path
) -> None:
    chat = ChatTemplate.load(smollm2)
    for record in [*single.conversations[::20], *workflows.conversations[::5]]:
        encoded = chat.encode_conversation(record)
        starts = [i for i, (was, now) in enumerate(pairwise([False, *encoded.is_target])) if now and not was]
        places = [i for i, message in enumerate(record["messages"]) if message["role"] == "assistant"]
        assert len(starts) == len(places)
        for place, start in zip(places, starts, strict=True):
            prompt = chat.render(record["messages"][:place], add_generation_prompt=True)
            assert chat._tokenizer.encode(prompt, add_special_tokens=False).ids == encoded.token_ids[:start]


VALUES = st.integers(0, 9) | st.text("abc'(=)", max_size=6) | st.booleans() | st.lists(st.integers(0, 9), max_size=3)
CALLS = st.lists(
    st.tuples(st.sampled_from(["move", "sort", "files.find"]), st.dictionaries(st.sampled_from("xyz"), VALUES)),
    min_size=1,
    max_size=4,
)
SCHEMAS = {
    name: {"parameters": {"properties": {key: {"type": "any"} for key in "xyz"}, "required": ["x"]}}
    for name in ("move", "sort", "files.find", "files.remove")
}


@given(st.text(max_size=8), CALLS, CALLS)
def test_wrong_answers_are_others_than_the_right_one_and_the_same_each_time(
    name: str, calls: list[Call], earlier: list[Call]
) -> None:
    wrong = wrong_answers(name, calls, SCHEMAS, earlier)
    assert wrong == wrong_answers(name, calls, SCHEMAS, earlier)
    assert written_calls(calls) not in wrong.values()
    assert {"other_function", "prose", "cut_off"} <= set(wrong)
    for kind, answer in wrong.items():
        assert (parse_calls(answer) is None) == (kind in ("prose", "cut_off")), answer
    assert written_calls(calls).startswith(wrong["cut_off"])


def test_arguments_without_names_get_those_of_the_schema() -> None:
    (call,) = named_calls(["move('a.txt', y=2)"], SCHEMAS)
    assert call == ("move", {"x": "a.txt", "y": 2})
    for text in ("copy(x=1)", "move(1, 2, 3, 4)", "move(w=1)", "move(x=1), sort(x=1)", "move"):
        with pytest.raises(ValueError, match=r"no call of one of|has more arguments|has no parameter"):
            named_calls([text], SCHEMAS)


def test_files_hold_the_records_and_the_table_counts_their_tokens(
    single: Trajectories, workflows: Trajectories, tmp_path: Path, smollm2: Path
) -> None:
    few = Trajectories(conversations=single.conversations[:3], preferences=single.preferences[:2])
    write(tmp_path, {"single": few, "workflows": workflows}, fraction=FRACTION)
    lines = (tmp_path / "single" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == few.conversations
    assert (tmp_path / "single" / "held_out_conversations.jsonl").read_text() == ""
    held_out = json.loads((tmp_path / "held_out_ids.json").read_text())
    assert held_out == {
        "held_out_fraction": FRACTION,
        "held_out_ids": {"single": [], "workflows": workflows.held_out_ids},
    }
    chat = ChatTemplate.load(smollm2)
    counted = sum(len(chat.encode_conversation(record).token_ids) for record in few.conversations)
    row = next(line for line in table({"single": few}, chat) if "conversations" in line)
    assert row.split()[:4] == ["single", "conversations", "3", f"{counted:,}"]


def test_what_is_not_prepared_or_not_a_share_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--root", str(tmp_path)]) == ExitCode.DATA
    assert "python -m eval.prepare bfcl_simple" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--held-out-fraction", "1"]) == ExitCode.BAD_CONFIG
    assert list(tmp_path.iterdir()) == []

"""Workflows in the real simulated systems, with models that follow a script."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.reliability import pass_hat
from eval.workflows.conversation import MAXIMUM_STEPS, Conversation
from eval.workflows.run import TryResult, run_workflows, workflow_metrics
from eval.workflows.simulator import CallFailed, Simulator
from eval.workflows.tasks import WorkflowTask, read_tasks
from tests.unit.eval.scripted_model import ScriptedModel, endless, gold, other_calls, silent
from training.errors import ConfigError, DataError

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
EACH = 5


@pytest.fixture(scope="module")
def tasks(prepared_benchmarks: Path) -> list[WorkflowTask]:
    """Some of each category."""
    every = read_tasks(prepared_benchmarks)
    return [task for category in CATEGORIES for task in [t for t in every if t.category == category][:EACH]]


@pytest.fixture(scope="module")
def systems(prepared_benchmarks: Path) -> Iterator[Simulator]:
    with Simulator(prepared_benchmarks) as simulator:
        yield simulator


def test_the_right_calls_solve_every_task_and_nothing_else_does(tasks: list[WorkflowTask], systems: Simulator) -> None:
    results = run_workflows(tasks, ScriptedModel(tasks, gold), systems)
    assert [result.fault for result in results] == [None] * len(tasks)
    assert [result.num_calls for result in results] == [sum(map(len, task.answer)) for task in tasks]
    assert workflow_metrics(results) == {f"pass_at_1{name}": 1.0 for name in ("", *(f"/{c}" for c in CATEGORIES))}
    for script in (silent, other_calls):
        results = run_workflows(tasks, ScriptedModel(tasks, script), systems)
        assert not [result for result in results if result.solved or result.fault is None]


def test_conversations_go_on_together_each_as_long_as_it_takes(tasks: list[WorkflowTask], systems: Simulator) -> None:
    model = ScriptedModel(tasks, gold)
    results = run_workflows(tasks, model, systems)
    assert len(model.batches) == max(result.num_answers for result in results)
    assert sum(model.batches) == sum(result.num_answers for result in results)
    assert model.batches[0] == len(tasks)
    assert model.batches == sorted(model.batches, reverse=True)


def test_every_answer_of_every_try_has_a_seed_of_its_own(tasks: list[WorkflowTask], systems: Simulator) -> None:
    some = tasks[:3]
    models = [ScriptedModel(some, gold) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        run_workflows(some, model, systems, num_tries=2, temperature=1.0, seed=seed)
    assert len(set(models[0].seeds)) == len(models[0].seeds)
    assert models[0].seeds == models[1].seeds
    assert set(models[0].seeds).isdisjoint(models[2].seeds)


def test_several_equal_tries_are_refused(tasks: list[WorkflowTask], systems: Simulator) -> None:
    with pytest.raises(ConfigError, match="all tries are the same"):
        run_workflows(tasks, ScriptedModel(tasks, gold), systems, num_tries=2)


def test_a_model_that_never_stops_calling_fails(tasks: list[WorkflowTask], systems: Simulator) -> None:
    (result,) = run_workflows(tasks[:1], ScriptedModel(tasks[:1], endless), systems)
    assert result.fault == f"it went on calling after {MAXIMUM_STEPS} steps of turn 1"
    assert result.num_answers == MAXIMUM_STEPS + 1


def test_a_function_is_shown_in_the_turn_that_reveals_it(tasks: list[WorkflowTask], systems: Simulator) -> None:
    task = next(task for task in tasks if task.category == "miss_func")
    ((turn, (name, *_)),) = task.revealed.items()
    talk = Conversation(task, systems)
    for _ in range(int(turn)):
        assert not [message for message in talk.messages if f'"name": "{name}"' in message["content"]]
        talk.take("I cannot do that yet.")
    assert talk.messages[-1]["role"] == "user"
    assert f'"name": "{name}"' in talk.messages[-1]["content"]
    assert "updated some more functions" in talk.messages[-1]["content"]


def test_results_come_back_in_order_and_a_refused_call_says_why(tasks: list[WorkflowTask], systems: Simulator) -> None:
    task = next(task for task in tasks if "GorillaFileSystem" in task.involved_classes)
    talk = Conversation(task, systems)
    talk.take("[pwd(), open('/etc/passwd'), ls(a=True), cd(folder=__name__), echo(content='\\ud800')]")
    where, refused, listing, no_literal, echoed = [message["content"] for message in talk.messages[-5:]]
    assert "current_working_directory" in where
    assert "there is no function open" in refused
    assert "current_directory_content" in listing
    assert "argument folder is no literal" in no_literal
    assert echoed.encode("utf-8")
    assert (talk.num_calls, talk.num_refused_calls) == (3, 2)


def test_a_state_lasts_for_a_conversation_and_no_longer(tasks: list[WorkflowTask], systems: Simulator) -> None:
    task = next(task for task in tasks if "GorillaFileSystem" in task.involved_classes)
    for _ in range(2):
        assert "None" in systems.execute(task, [[["mkdir(dir_name='new')"]]])[0]
        assert "new" in systems.execute(task, [[["mkdir(dir_name='new')"]], [["ls()"]]])[0]
        assert "new" not in systems.execute(task, [[["ls()"]]])[0]


def test_a_call_without_an_end_fails_its_try_alone(prepared_benchmarks: Path, tasks: list[WorkflowTask]) -> None:
    (task,) = [replace(task, involved_classes=["MathAPI"], initial_config={}) for task in tasks[:1]]
    with Simulator(prepared_benchmarks, request_seconds=3.0) as systems:
        with pytest.raises(CallFailed, match="longer than 3 s"):
            systems.execute(task, [[["power(base=10, exponent=10000000000)"]]])
        assert "12.0" in systems.execute(task, [[["add(a=5.0, b=7.0)"]]])[0]


def test_a_process_that_ended_is_started_again(prepared_benchmarks: Path, tasks: list[WorkflowTask]) -> None:
    with Simulator(prepared_benchmarks) as systems:
        expected = systems.execute(tasks[0], [[list(tasks[0].answer[0])]])
        systems._process.kill()
        systems._process.wait()
        assert systems.execute(tasks[0], [[list(tasks[0].answer[0])]]) == expected


def test_a_package_that_does_not_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No module named 'bfcl_eval'"):
        Simulator(tmp_path)


def test_tasks_that_are_not_prepared_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"python -m eval\.prepare bfcl_multi_turn"):
        read_tasks(tmp_path)


def test_pass_hat_by_hand() -> None:
    # Three tasks, four tries each: all, half and none of them solved.
    assert pass_hat([4, 2, 0], 4, 1) == pytest.approx(1 / 2)
    assert pass_hat([4, 2, 0], 4, 2) == pytest.approx((1 + 1 / 6) / 3)
    assert pass_hat([4, 2, 0], 4, 4) == pytest.approx(1 / 3)


@given(st.lists(st.integers(0, 6), min_size=1), st.integers(1, 6))
def test_more_tries_are_never_easier(solved: list[int], k: int) -> None:
    assert 0 <= pass_hat(solved, 6, k) <= pass_hat(solved, 6, 1) <= 1
    assert pass_hat(solved, 6, 6) == sum(count == 6 for count in solved) / len(solved)


def test_metrics_of_tries_are_those_of_their_tasks() -> None:
    def tried(task: str, attempt: int, solved: bool) -> TryResult:
        counts = {"num_turns": 1, "num_answers": 1, "num_calls": 1, "num_refused_calls": 0}
        fault = None if solved else "…"
        return TryResult(task=task, category=task[0], attempt=attempt, solved=solved, fault=fault, **counts)

    results = [tried("a1", 0, True), tried("a1", 1, True), tried("b1", 0, True), tried("b1", 1, False)]
    assert workflow_metrics(results) == {
        "pass_at_1": 0.75,
        "pass_hat_2": 0.5,
        "pass_at_1/a": 1.0,
        "pass_hat_2/a": 1.0,
        "pass_at_1/b": 0.5,
        "pass_hat_2/b": 0.0,
    }

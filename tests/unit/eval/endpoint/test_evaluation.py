"""lm_eval itself asks: its tasks, few-shot prompts, filters and metrics."""

import json
from pathlib import Path
from typing import Any, cast

import lm_eval
from lm_eval.tasks import TaskManager

from tests.unit.eval.endpoint.recorded import lm_of
from tests.unit.eval.endpoint.scripted_server import Reply, answer, scripted_server

QUESTIONS = [{"question": f"{a} + {b}", "answer": str(a + b)} for a in (1, 2) for b in (3, 4)]
RIGHT_LETTERS = {"1 + 3": "B", "1 + 4": "B", "2 + 3": "A", "2 + 4": "(b)"}


def tasks(folder: Path) -> list[dict[str, Any]]:
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "doc_to_text": "What is {{question}}?",
        "metadata": {"version": 1},
    }
    generating = {
        **shared,
        "task": "sums",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    choosing = {
        **shared,
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": ["9", "{{answer}}", "8"],
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    return [generating, choosing]


def reply(body: dict[str, Any], _number: int) -> Reply:
    """Right sums but for one, right letters but for one."""
    asked = body["messages"][-1]["content"]
    question = next(question for question in QUESTIONS if question["question"] in asked)
    if "Reply with the letter" in asked:
        return answer(RIGHT_LETTERS[question["question"]])
    return answer("7\nIs that so?" if question["question"] == "2 + 4" else f"{question['answer']}\nand more")


def test_a_suite_of_lm_eval_runs_and_is_replayed(tmp_path: Path) -> None:
    manager = TaskManager(include_defaults=False)

    def evaluate(**values: Any) -> dict[str, Any]:
        lm = lm_of("chat", tmp_path / "journal.jsonl", base_url=server.url, **values)
        try:
            # lm_eval's decorator hides the parameters from type checkers.
            found = cast(Any, lm_eval.simple_evaluate)(
                model=lm,
                tasks=tasks(tmp_path),
                task_manager=manager,
                apply_chat_template=True,
                bootstrap_iters=0,
                log_samples=False,
            )
            per_task = lm.client.usage_per_task()
            assert {task: usage.answers for task, usage in per_task.items()} == {"sums": 4, "choices": 4}
            return found["results"]
        finally:
            lm.close()

    with scripted_server(reply) as server:
        results = evaluate()
    assert results["sums"]["exact_match,none"] == 0.75
    assert results["choices"]["acc,none"] == 0.75
    assert results["choices"]["acc_norm,none"] == 0.75
    assert len(server.bodies) == 8
    assert evaluate(offline=True) == results

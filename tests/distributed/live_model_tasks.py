"""A multiple-choice, a rolling and two generation tasks of lm_eval, made of local text."""

import json
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

MAX_LENGTH = 160
"""Short, so that the rolling text takes several windows."""

QUESTIONS = [
    ("What is the capital of France?", ["London", "Paris", "Rome, the old city", "Oslo"], 1),
    ("Which planet is the largest?", ["Mars", "Venus", "Jupiter", "Our own Earth"], 2),
    ("How many legs has a spider?", ["Eight", "Six", "Four"], 0),
    ("Which language is spoken in Brazil?", ["Spanish", "Portuguese", "French", "Italian"], 1),
    ("What is frozen water called?", ["Steam", "Ice"], 1),
]
TEXTS = [
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; " * 5,
    "def add(a, b):\n    return a + b\n",
    "Nobody knew why the lamp went out — naïve as they were.",
]
PROMPTS = [
    "The capital of France is Paris. The capital of Italy is",
    "Q: What is two plus two?\nA:",
    "Once upon a time, in a land far away, there lived a king who",
    "1, 2, 3, 4,",
]


def write_tasks(folder: Path) -> None:
    """The tasks' data, as lm_eval reads it."""
    rows = {
        "choice": [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS],
        "rolling": [{"text": text} for text in TEXTS],
        "generation": [{"text": text, "answer": "x"} for text in PROMPTS],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def run_tasks(model: Any, folder: Path) -> dict[str, Any]:
    """Task -> one entry per item: log-likelihoods and greedy flags, or text."""
    results = simple_evaluate(
        model=model,
        tasks=[*_tasks(folder)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        random_seed=None,  # type: ignore[arg-type]
        numpy_random_seed=None,  # type: ignore[arg-type]
        torch_random_seed=None,  # type: ignore[arg-type]
    )
    assert results is not None
    assert "samples" in results
    return {
        task: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in results["samples"].items()
    }


def _tasks(folder: Path) -> list[dict[str, Any]]:
    def task(name: str, data: str, **more: Any) -> dict[str, Any]:
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}},
            "test_split": "test",
            "metadata": {"version": 1},
            **more,
        }

    generation: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    return [
        task(
            "choice",
            "choice",
            output_type="multiple_choice",
            doc_to_text="Question: {{question}}\nAnswer:",
            doc_to_choice="choices",
            doc_to_target="answer",
            metric_list=[{"metric": "acc"}],
        ),
        task(
            "rolling",
            "rolling",
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "bits_per_byte"}],
        ),
        task("lines", "generation", generation_kwargs={"until": ["\n"], "max_gen_toks": 6}, **generation),
        task("words", "generation", generation_kwargs={"until": ["."], "max_gen_toks": 8}, **generation),
    ]

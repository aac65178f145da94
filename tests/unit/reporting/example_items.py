"""A report of an evaluation as the harness writes it, with an item of every kind, and answers that mean harm."""

import json
from pathlib import Path
from typing import Any

MARKUP = "</td></table></details><script>alert(1)</script><img src=http://example.org onerror=alert(2)>"
HALF_CHARACTER = "half a character: \ud83d, and \x00, \x1b[31m, \u202e"
LONG_ANSWER = "again and " * 30_000


def workflow_try(attempt: int, fault: str | None) -> dict[str, Any]:
    return {
        "task": "book_flight",
        "category": "base",
        "attempt": attempt,
        "solved": fault is None,
        "fault": fault,
        "num_turns": 2,
        "num_answers": 5,
        "num_calls": 3,
        "num_refused_calls": 0,
    }


def example_report() -> dict[str, Any]:
    def item(identity: str, scores: dict[str, Any], answer: Any, *, target: str = "No") -> dict[str, Any]:
        return {
            "id": identity,
            "key": "0123456789abcdef",
            "scores": scores,
            "prompt": f"Question {identity}: yes or no?",
            "answer": answer,
            "target": target,
        }

    tasks = {
        "held_out": [{"id": "kjv/Genesis 1", "key": "00", "bits": 450.25, "num_bytes": 151, "num_tokens": 64}],
        "multiple_choice": [
            {"id": "kjv/Genesis 1@0", "key": "00", "right": 2, "logprobs": [-9.5, -8.25], "correct": False}
        ],
        "samples": [{"prompt": "In the beginning", "text": MARKUP}],
        "cissp": [item("q1", {"acc": 1.0}, [[-6.185, False], [-1.5, True], [-11.5, False]], target="1")],
        "regex_match": [
            item("markup", {"acc": 0.0}, [MARKUP], target=MARKUP),
            item("half", {"acc": 0.0}, [HALF_CHARACTER]),
            item("long", {"acc": 1.0}, [LONG_ANSWER]),
            *(item(f"plain {number}", {"acc": 1.0}, ["Yes.", "No."]) for number in range(200)),
        ],
        "human_eval": [
            item("0", {"pass_at_1": 0.5}, [[{"passed": True, "why": ""}, {"passed": False, "why": "raised NameError"}]])
        ],
        "bits_per_byte_prose": [item("kjv/Ruth 1", {"bits_per_byte": [11064.0, 3352.0]}, [-7669.5])],
        "bfcl_multi_turn": [
            {
                "id": "book_flight",
                "key": "00",
                "scores": {"pass_at_1": 0.5, "pass_hat_2": 0.0},
                "tries": [workflow_try(0, None), workflow_try(1, "the state differs")],
            }
        ],
    }
    return {
        "suite_name": "quick",
        "weights": "0123456789abcdef",
        "metrics": {"bits_per_byte": 2.5, "cissp/acc": 1.0},
        "tasks": {name: {"version": 1, "items": items} for name, items in tasks.items()},
        "seconds": 4.0,
    }


def write_example_report(path: Path, report: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(example_report() if report is None else report))
    return path

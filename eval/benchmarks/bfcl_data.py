"""Items of the Berkeley Function Calling Leaderboard (package `bfcl-eval`): single calls, and workflows of many turns.

Schemas and answers are kept as JSON text: in `datasets`, which reads the items, objects of one column must have the
same fields, and these have as many kinds as there are functions.
"""

import json
import zipfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from eval.benchmarks.evals_data import Extract

_DATA = "bfcl_eval/data"
_SINGLE_TURN = {"bfcl_simple": "simple_python", "bfcl_multiple": "multiple", "bfcl_parallel": "parallel"}
_CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
_CHECKER = "bfcl_eval/eval_checker/multi_turn_eval"
_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}
"""Simulated system -> the module that holds it; its functions' schemas are in the JSON file of the same name."""


def schemas_member(system: str) -> str:
    """Return the member of the wheel with the schemas of a simulated system's functions, one JSON object a line."""
    return f"{_DATA}/multi_turn_func_doc/{_MODULES[system]}.json"


PACKAGE_MEMBERS = (
    "bfcl_eval/__init__.py",
    "bfcl_eval/constants/__init__.py",
    "bfcl_eval/constants/executable_backend_config.py",
    "bfcl_eval/eval_checker/__init__.py",
    f"{_CHECKER}/__init__.py",
    f"{_CHECKER}/multi_turn_checker.py",
    f"{_CHECKER}/multi_turn_utils.py",
    f"{_CHECKER}/func_source_code/__init__.py",
    f"{_CHECKER}/func_source_code/long_context.py",
    *(f"{_CHECKER}/func_source_code/{module}.py" for module in _MODULES.values()),
    *(schemas_member(system) for system in _MODULES),
)
"""What `eval/workflows` runs: the simulated systems of the multi-turn tasks and the checker of their end states."""


def _single_turn(category: str, wheel: zipfile.ZipFile) -> Sequence[dict[str, Any] | None]:
    """Return requests that take one call, or several at once."""
    answers = _answers(wheel, category)
    items = []
    for entry in _entries(wheel, f"BFCL_v4_{category}.json"):
        ((message,),) = entry["question"]
        items.append(
            {
                "id": entry["id"],
                "question": message["content"],
                "functions": json.dumps(entry["function"]),
                "answer": json.dumps(answers[entry["id"]]),
            }
        )
    return items


def _multi_turn(wheel: zipfile.ZipFile) -> Sequence[dict[str, Any] | None]:
    """Return the workflows of all four categories.

    A function that is missing at first is in `revealed`, under the turn that shows it to the model; that turn has no
    message of the user. As in the leaderboard's own runs, functions that its entries call excluded are offered too.
    """
    categories = [_workflows(category, wheel) for category in _CATEGORIES]
    # In turn, so that the first items, which a suite may ask for, are of all categories.
    return [item for items in zip(*categories, strict=True) for item in items]


def _workflows(category: str, wheel: zipfile.ZipFile) -> list[dict[str, Any]]:
    answers = _answers(wheel, f"multi_turn_{category}")
    return [
        {
            "id": entry["id"],
            "category": category,
            "turns": [[message["content"] for message in turn] for turn in entry["question"]],
            "revealed": entry.get("missed_function", {}),
            "initial_config": entry["initial_config"],
            "involved_classes": entry["involved_classes"],
            "answer": answers[entry["id"]],
        }
        for entry in _entries(wheel, f"BFCL_v4_multi_turn_{category}.json")
    ]


def _answers(wheel: zipfile.ZipFile, category: str) -> dict[str, Any]:
    return {entry["id"]: entry["ground_truth"] for entry in _entries(wheel, f"possible_answer/BFCL_v4_{category}.json")}


def _entries(wheel: zipfile.ZipFile, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in wheel.read(f"{_DATA}/{file}").decode("utf-8").splitlines() if line.strip()]


EXTRACT: dict[str, Extract] = {
    **{name: partial(_single_turn, category) for name, category in _SINGLE_TURN.items()},
    "bfcl_multi_turn": _multi_turn,
}
"""Benchmark -> what reads its items."""

"""Prepared workflow tasks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks.bfcl_data import schemas_member
from training.config.benchmarks import PACKAGE_NAME, benchmark_directory, items_file, missing
from training.errors import DataError

BENCHMARK = "bfcl_multi_turn"


@dataclass(frozen=True, kw_only=True)
class WorkflowTask:
    """One task: what a user asks for, turn by turn, of some simulated systems."""

    id: str
    category: str
    """base, miss_func (a function is shown only in a later turn), miss_param (the user names something only in a later
    turn) or long_context (the systems return much more than is needed)."""
    turns: Sequence[Sequence[str]]
    """Messages of the user in each turn; none in a turn that shows functions."""
    schemas: Mapping[str, Mapping[str, Any]]
    """Name -> schema of all functions of the systems."""
    revealed: Mapping[str, Sequence[str]]
    """Turn -> functions that are shown from then on."""
    initial_config: Mapping[str, Any]
    """State of the systems at the start."""
    involved_classes: Sequence[str]
    """The systems."""
    answer: Sequence[Sequence[str]]
    """Calls of each turn that do what is asked; none where the model cannot yet do it."""

    @cached_property
    def shown_at_first(self) -> list[Mapping[str, Any]]:
        """Schemas that the model sees from the start."""
        later = {name for names in self.revealed.values() for name in names}
        return [schema for name, schema in self.schemas.items() if name not in later]

    def shown_in(self, turn: int) -> list[Mapping[str, Any]]:
        """Return the schemas that a turn shows."""
        return [self.schemas[name] for name in self.revealed.get(str(turn), [])]


def read_tasks(root: Path) -> list[WorkflowTask]:
    """Return all tasks under a folder of prepared data, in their own order.

    Raises:
        DataError: they are not prepared, or were changed.
    """
    if faults := missing(root, [BENCHMARK]):
        raise DataError("\n".join(faults))
    package = package_directory(root)
    schemas: dict[str, dict[str, Any]] = {}
    tasks = []
    for line in items_file(root, BENCHMARK).read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        for system in item["involved_classes"]:
            if system not in schemas:
                lines = (package / schemas_member(system)).read_text(encoding="utf-8").splitlines()
                schemas[system] = {schema["name"]: schema for schema in map(json.loads, lines)}
        of_task = {name: schema for system in item["involved_classes"] for name, schema in schemas[system].items()}
        tasks.append(WorkflowTask(**item, schemas=of_task))
    return tasks


def package_directory(root: Path) -> Path:
    """Return the folder of the leaderboard's own code that runs the systems."""
    return benchmark_directory(root, BENCHMARK) / PACKAGE_NAME

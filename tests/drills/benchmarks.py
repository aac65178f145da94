"""Every item of every benchmark: who knows the answers gets all of it right, who does not gets nothing right.

    python -m tests.drills.benchmarks

The tasks of lm_eval by an oracle and by a model that is always wrong; the workflows by replaying the right calls in the
simulated systems, and by calls that nobody asked for. The items have to lie prepared (make evaldata).
"""

import sys
import tempfile
from pathlib import Path

from eval.benchmarks.registry import task_file
from eval.workflows.run import run_workflows
from eval.workflows.simulator import Simulator
from eval.workflows.tasks import WorkflowTask, read_tasks
from tests.unit.eval.oracle import OracleLM, WrongLM, answer_of, measure, task_config
from tests.unit.eval.scripted_model import Script, ScriptedModel, gold, other_calls
from training.config.benchmarks import BENCHMARKS, BenchmarkKind, items_file

_ROOT = Path(__file__).parents[2] / "prepared"


def main() -> int:
    """Print a line per benchmark; return 0 if all are as they should be."""
    problems = _single_answers() + _workflows()
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"benchmarks: {len(problems)} problems")
    return int(bool(problems))


def _single_answers() -> list[str]:
    names = [name for name in BENCHMARKS if task_file(name) is not None]
    with tempfile.TemporaryDirectory() as cache:
        configs = [task_config(_file(name), items_file(_ROOT, name), Path(cache)) for name in names]
        answers = {config["task"]: answer_of(config) for config in configs if config["output_type"] == "generate_until"}
        right, wrong = measure(OracleLM(answers), configs), measure(WrongLM(), configs)
    problems = []
    for name in names:
        is_rolling = BENCHMARKS[name].kind is BenchmarkKind.rolling
        print(f"{name}: oracle {right[name]}, always wrong {wrong[name]}")
        if set(right[name].values()) != {0.0 if is_rolling else 1.0}:
            problems.append(f"{name}: the oracle has {right[name]}")
        if not is_rolling and set(wrong[name].values()) != {0.0}:
            problems.append(f"{name}: who is always wrong has {wrong[name]}")
    return problems


def _file(name: str) -> Path:
    path = task_file(name)
    assert path is not None
    return path


def _workflows() -> list[str]:
    tasks, problems = read_tasks(_ROOT), []
    with Simulator(_ROOT) as systems:
        for category in sorted({task.category for task in tasks}):
            of_category = [task for task in tasks if task.category == category]
            solved = _solved(of_category, gold, systems)
            by_others = _solved(of_category, other_calls, systems)
            print(f"{category}: the right calls solve {solved} of {len(of_category)}, other calls {by_others}")
            if solved < len(of_category) or by_others:
                problems.append(f"{category}: {solved} of {len(of_category)} solved, {by_others} by other calls")
    return problems


def _solved(tasks: list[WorkflowTask], script: Script, systems: Simulator) -> int:
    return sum(result.solved for result in run_workflows(tasks, ScriptedModel(tasks, script), systems))


if __name__ == "__main__":
    sys.exit(main())

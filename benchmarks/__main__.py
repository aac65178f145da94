"""Measure, and print one page of results.

    python -m benchmarks [--quick] [--write]
                         [--only engines|pipelines|checkpoints|evaluation|plans|layers|data|preference|logging]
                         [--rounds N] [--steps N] [--storage DIRECTORY]

--quick shows that everything runs, its numbers mean little; --only measures one contest and nothing else; --write
also replaces docs/benchmarks.md.
"""

import argparse
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.check_seconds import check_seconds
from benchmarks.checkpoint_contest import CheckpointContest, compete_in_checkpoints
from benchmarks.contests import ENGINES, PIPELINES
from benchmarks.data_contest import compete_in_data
from benchmarks.evaluation_contest import compete_in_evaluation
from benchmarks.layer_contest import compete_in_layers
from benchmarks.logging_contest import compete_in_logging
from benchmarks.machine import describe_machine, num_cores
from benchmarks.plan_contest import compete_in_plans
from benchmarks.preference_contest import compete_in_preferences
from benchmarks.report import Results, Starts, page
from benchmarks.start_up import submit_phases, submit_seconds, trainer_seconds
from benchmarks.throughput import Contest, compete
from tests.real_weights import SMOLLM2
from training.config.load import compose
from training.data.prepare import ensure

_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Run all measurements, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and print one page of results.")
    parser.add_argument("--quick", action="store_true", help="a few steps, one round")
    parser.add_argument(
        "--only",
        choices=(
            "engines",
            "pipelines",
            "checkpoints",
            "evaluation",
            "plans",
            "layers",
            "data",
            "preference",
            "logging",
        ),
        help="measure one contest and nothing else",
    )
    parser.add_argument("--write", action="store_true", help="also replace docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, help="turns of every contestant, and starts (default 5; checkpoints 3)")
    parser.add_argument("--steps", type=int, help="optimizer steps per turn (default 10)")
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path("runs"),
        help="folder on the disk that checkpoints are written to (default runs)",
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    results = _measure(
        only=arguments.only,
        num_rounds=arguments.rounds or (1 if arguments.quick else 5),
        num_checkpoint_rounds=arguments.rounds or (1 if arguments.quick else 3),
        is_quick=arguments.quick,
        storage=arguments.storage,
        steps_per_turn=arguments.steps or (2 if arguments.quick else 10),
        warm_up_steps=2 if arguments.quick else 5,
    )
    text = page(results)
    print(text)
    if arguments.write:
        _PAGE.write_text(text)


def _measure(
    *,
    only: str | None,
    num_rounds: int,
    num_checkpoint_rounds: int,
    is_quick: bool,
    storage: Path,
    steps_per_turn: int,
    warm_up_steps: int,
) -> Results:
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="autarky-benchmarks-") as directory:
        root = Path(directory)
        prepared = f"data.prepared_root={root / 'prepared'}"
        demo, smoke = ["experiment=demo", prepared], ["experiment=smoke", prepared]
        if only in (None, "engines", "pipelines"):
            _say("preparing data")
            ensure(compose(demo).data)
        contests: dict[str, Contest] = {}
        for name, lineup in (("engines", ENGINES), ("pipelines", PIPELINES)):
            if only in (None, name):
                _say(f"{name}: training, in turns")
                contests[name] = compete(
                    lineup, demo, num_rounds=num_rounds, steps_per_turn=steps_per_turn, warm_up_steps=warm_up_steps
                )
        checkpoints = (
            _checkpoints(storage, num_rounds=num_checkpoint_rounds, is_small=is_quick)
            if only in (None, "checkpoints")
            else None
        )
        evaluation = (
            compete_in_evaluation(SMOLLM2, num_rounds=num_rounds, is_quick=is_quick, say=_say)
            if only in (None, "evaluation")
            else None
        )
        planned = compete_in_plans(num_steps=steps_per_turn, say=_say) if only in (None, "plans") else None
        raced = (
            compete_in_layers(num_rounds=num_rounds, num_passes=steps_per_turn, say=_say)
            if only in (None, "layers")
            else None
        )
        read = (
            compete_in_data(root, SMOLLM2, num_rounds=num_rounds, is_quick=is_quick, say=_say)
            if only in (None, "data")
            else None
        )
        preferred = (
            compete_in_preferences(
                root, num_rounds=num_rounds, steps_per_turn=steps_per_turn, warm_up_steps=warm_up_steps, say=_say
            )
            if only in (None, "preference")
            else None
        )
        logged = (
            compete_in_logging(root / "logging", num_pairs=4 if is_quick else 20 * num_rounds, say=_say)
            if only in (None, "logging")
            else None
        )
        starts = _starts(smoke, root, repeats=num_rounds) if only is None else None
    return Results(
        machine=machine,
        num_cores=num_cores(),
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
        date=datetime.now(UTC).date().isoformat(),
        engines=contests.get("engines"),
        pipelines=contests.get("pipelines"),
        checkpoints=checkpoints,
        evaluation=evaluation,
        plans=planned,
        layers=raced,
        data=read,
        preference=preferred,
        logging=logged,
        starts=starts,
    )


def _checkpoints(storage: Path, *, num_rounds: int, is_small: bool) -> CheckpointContest:
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="autarky-benchmarks-", dir=storage) as directory:
        return compete_in_checkpoints(Path(directory).resolve(), num_rounds=num_rounds, is_small=is_small, say=_say)


def _starts(smoke: list[str], root: Path, *, repeats: int) -> Starts:
    _say("launch.check")
    checks = check_seconds(["experiment=demo"], repeats=max(repeats, 2))
    ensure(compose(smoke).data)
    ours, trainers, phases = [], [], []
    for turn in range(repeats):
        _say(f"start-up {turn + 1} of {repeats}")
        ours.append(submit_seconds(smoke, root / f"submit-{turn}"))
        trainers.append(trainer_seconds(smoke, root / f"trainer-{turn}"))
        phases.append(submit_phases(smoke, root / f"phases-{turn}"))
    return Starts(submit_seconds=ours, trainer_seconds=trainers, submit_phases=phases, check_seconds=checks)


def _say(what: str) -> None:
    print(f"[{what}]", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

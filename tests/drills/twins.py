"""Twins of the experiments that need a cluster: each trains 200 steps on real text, in its own layout on 4 processes.

    python -m tests.drills.twins [--only NAME,NAME…] [--steps 200] [--write]

Each is started as a person would, by `python -m launch.twin experiment=NAME`; what it did is read from its
metrics.jsonl. Exit code 1 if one does not end well, or if its loss does not fall by 15 % in all its steps. --write puts
the table into docs/models.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tests.integration.reading import records
from tests.integration.running import only_run, run_to_end
from training.config.data_schema import PrepareData
from training.config.load import compose, load_frozen
from training.config.overrides import group_choices
from training.config.schema import ParallelConfig, RunConfig
from training.models.sizes import num_parameters

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- twins -->\n", "<!-- /twins -->\n"
LEAST_FALL = 0.15
"""Of the loss, from the first step to the mean of the last ten."""
_LIMIT_SECONDS = 1800.0
_COLUMNS = (
    "experiment",
    "parameters",
    "the twin's",
    "the twin's layout",
    "steps",
    "first loss",
    "last loss",
    "seconds",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A twin that ran to its end."""

    name: str
    """Of the experiment."""
    original: RunConfig
    twin: RunConfig
    losses: list[float]
    """Of its steps, in order."""
    seconds: float
    """From the command to its end: starts, evaluations and checkpoints are in it."""

    @property
    def last_loss(self) -> float:
        """Mean loss of the last ten steps, or of the last quarter of a short run."""
        return fmean(self.losses[-min(10, max(1, len(self.losses) // 4)) :])

    @property
    def fall(self) -> float:
        """How far the loss fell, as a share of the first."""
        return 1 - self.last_loss / self.losses[0]

    @property
    def row(self) -> tuple[str, ...]:
        """What the table says of it."""
        return (
            f"`{self.name}`",
            f"{num_parameters(self.original.model):,}",
            f"{num_parameters(self.twin.model):,}",
            "; ".join(dict.fromkeys(layout(self.twin, self.twin.layout_of(stage)) for stage in self.twin.stages)),
            f"{len(self.losses)}",
            f"{self.losses[0]:.2f}",
            f"{self.last_loss:.2f}",
            f"{self.seconds:.0f}",
        )


def main(argv: Sequence[str]) -> int:
    """Train the twins, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.twins", description=__doc__)
    parser.add_argument("--only", default="", help="experiments, with commas (default: all that need a cluster)")
    parser.add_argument("--steps", type=int, default=200, help="of each twin")
    parser.add_argument("--write", action="store_true", help="put the table into docs/models.md")
    options = parser.parse_args(argv)
    trained, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(",") if options.only else experiments():
            try:
                twin = train(name, steps=options.steps, folder=Path(folder), prepared_root=Path(folder) / "prepared")
            except AssertionError as error:
                failed.append(f"{name}: {error}")
                continue
            trained.append(twin)
            print(" | ".join(twin.row), flush=True)
            if twin.fall < LEAST_FALL:
                failed.append(f"{name}: the loss fell by {twin.fall:.1%}, less than {LEAST_FALL:.0%}")
    print(f"{len(trained)} twins trained; {len(failed)} problems", *failed, sep="\n")
    if options.write:
        write(trained)
    return 1 if failed else 0


def experiments() -> list[str]:
    """Return the experiments whose data is not there until somebody brings it: those for clusters."""
    composed = {name: compose([f"experiment={name}"], to_plan=True) for name in group_choices("experiment")}
    return [name for name, config in composed.items() if config.data.prepare is PrepareData.require]


def train(name: str, *, steps: int, folder: Path, prepared_root: Path, words: Sequence[str] = ()) -> Trained:
    """Return what an experiment's twin did; it must end with exit code 0."""
    root = folder / name
    command = [sys.executable, "-m", "launch.twin", f"experiment={name}", f"run.root={root}"]
    command += [f"data.prepared_root={prepared_root}", *words, "--steps", str(steps)]
    began = time.monotonic()
    finished = run_to_end(command, folder=folder / "output", limit_seconds=_LIMIT_SECONDS)
    seconds = time.monotonic() - began
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root)
    return Trained(
        name=name,
        original=compose([f"experiment={name}"], to_plan=True),
        twin=load_frozen(run),
        losses=[step["loss"] for step in records(run, "step")],
        seconds=seconds,
    )


def layout(config: RunConfig, parallel: ParallelConfig) -> str:
    """Return a layout in a few words."""
    replicas = config.world_size // (parallel.pipeline * parallel.sequence)
    axes = {"pipeline": parallel.pipeline, "sequence": parallel.sequence, "expert": parallel.expert, "data": replicas}
    words = [f"{axis} {size}" for axis, size in axes.items() if size > 1]
    words += [f"{parallel.chunks_per_rank} chunks"] if parallel.chunks_per_rank > 1 else []
    return ", ".join([*words, f"ZeRO-{parallel.zero_stage}"])


def write(trained: Sequence[Trained]) -> None:
    """Replace the table of docs/models.md."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *(twin.row for twin in trained)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

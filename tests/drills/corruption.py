"""Damaged checkpoints: found before a live value changes, and the one before is used; and no false alarm.

    python -m tests.drills.corruption --count 500 --loads 1000 --seed 0

Every damage is done to the newest of two or three checkpoints that the real protocol committed; then the ranks do what
a resume does. Every fifth time all of them are damaged: no rank may start anew.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.drills.damages import DAMAGES, Damage, fingerprint
from tests.drills.random_states import State, commit, cut, draw_shapes, draw_state, holds, is_untouched
from tests.unit.checkpoint.simulated_ranks import SimulatedRanks, on_ranks
from training.checkpoint.catalog import committed, newest_whole
from training.checkpoint.load import load_checkpoint
from training.checkpoint.snapshot import Fragment, Snapshot
from training.errors import CorruptCheckpoint, ExitCode

LOADS_PER_CHECKPOINT = 10
ALL_DAMAGED_EVERY = 5


@dataclass(kw_only=True)
class Tally:
    """What a drill did and what went wrong."""

    damages: Counter[str] = field(default_factory=Counter)
    all_damaged: int = 0
    loads: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {number}" for name, number in sorted(self.damages.items()))
        return (
            f"corruption: {self.damages.total()} damages found before a live value changed ({kinds}), "
            f"{self.all_damaged} times with no whole checkpoint left; {self.loads} good loads bitwise equal; "
            f"{len(self.problems)} problems"
        )


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What each rank met when it resumed."""

    checkpoints: list[Path | None]
    errors: list[BaseException]
    messages: list[str]


def main(argv: list[str]) -> int:
    """Run the drill and print its line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.corruption", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="damages")
    parser.add_argument("--loads", type=int, default=1000, help="good loads")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    tally = drill(options.count, options.loads, options.seed)
    print(*tally.problems, sep="\n", end="\n" if tally.problems else "")
    print(tally)
    return int(bool(tally.problems))


def drill(count: int, loads: int, seed: int) -> Tally:
    """Do so many damages and so many good loads, all drawn from the seed."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as root:
        for number in range(count):
            damage = DAMAGES[number % len(DAMAGES)]
            name = f"damage {number} of seed {seed}, {damage.__name__}"
            try:
                harm(Path(root) / str(number), damage, number % ALL_DAMAGED_EVERY == 4, f"{seed}/{number}", tally)
            except AssertionError as problem:
                tally.problems.append(f"{name}: {problem}")
        for number in range(-(-loads // LOADS_PER_CHECKPOINT)):
            load_well(Path(root) / f"good-{number}", f"{seed}/good/{number}", tally)
    return tally


def harm(folder: Path, damage: Damage, all_of_them: bool, seed: str, tally: Tally) -> None:
    """Damage the newest checkpoint, or all, resume, and check what every rank met."""
    draw = random.Random(seed)
    num_writers, shapes = draw.randint(2, 3), draw_shapes(draw)
    steps = [2, 4, 6][: draw.randint(2, 3)]
    states = {step: draw_state(shapes, draw) for step in steps}
    paths = [commit(folder, step, state, num_writers, draw) for step, state in states.items()]
    newest, older = paths[-1], paths[-2]
    spoilt = [newest, *(path for path in paths[:-1] if all_of_them)]
    pristine = Path(shutil.copytree(folder, folder.with_suffix(".pristine")))
    harmed: list[set[Path]] = []
    for path in spoilt:
        before, files = fingerprint(path), set[Path]()
        while fingerprint(path) == before:  # what leaves every byte as it was is no damage
            files = damage(path, pristine / (older if path is newest else newest).name, draw)
        harmed.append(files)
    live = cut(states[steps[0]], draw.randint(1, 4), draw, empty=True)
    met = resume(folder, live)
    tally.damages[damage.__name__] += 1
    assert all(any(str(path) in met.messages[0] for path in files) for files in harmed), f"names {met.messages[0]}"
    assert len(set(met.messages)) == 1, f"the ranks say different things: {met.messages}"
    if all_of_them:
        tally.all_damaged += 1
        _check_refused(met, live)
        _check_refused(resume(folder, live), live)  # nor may a second start begin at step 0
    else:
        assert met.errors == [], f"{met.errors}"
        assert met.checkpoints == [older] * len(live), f"{met.checkpoints} was used, not {older}"
        assert holds(live, states[steps[-2]]), "the live state is not that of the older checkpoint"
        assert committed(folder)[0] == older


def load_well(folder: Path, seed: str, tally: Tally) -> None:
    """Load one good checkpoint under many layouts."""
    draw = random.Random(seed)
    state: State = draw_state(draw_shapes(draw), draw)
    checkpoint = commit(folder, 8, state, draw.randint(1, 5), draw)
    for _ in range(LOADS_PER_CHECKPOINT):
        live = cut(state, draw.randint(1, 5), draw, empty=True)
        met = resume(folder, live)
        tally.loads += 1
        if met.errors or met.checkpoints != [checkpoint] * len(live) or not holds(live, state):
            tally.problems.append(f"good load of {seed}: {met}")


def resume(folder: Path, live: list[list[Fragment]]) -> Resumed:
    """Do what a start does on every rank; the live state must be untouched when a checkpoint has been chosen."""

    def work(ranks: SimulatedRanks) -> tuple[Path | None, list[str]]:
        found, rejected = newest_whole([folder], ranks)
        untouched = is_untouched(live)
        if not ranks.agree(untouched):
            raise AssertionError("a live value changed before the checkpoint was checked")
        if found is not None:
            load_checkpoint(found, Snapshot(live[ranks.rank]), ranks)
        return found, rejected

    outcomes = on_ranks(len(live), work)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    fine = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    messages = [str(error) for error in errors] or ["; ".join(rejected) for _, rejected in fine]
    return Resumed(checkpoints=[found for found, _ in fine], errors=errors, messages=messages)


def _check_refused(met: Resumed, live: list[list[Fragment]]) -> None:
    assert [type(error) for error in met.errors] == [CorruptCheckpoint] * len(live), f"{met}"
    assert {error.exit_code for error in met.errors if isinstance(error, CorruptCheckpoint)} == {
        ExitCode.CORRUPT_CHECKPOINT
    }
    assert is_untouched(live), "a live value changed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

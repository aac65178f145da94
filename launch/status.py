"""Say in one screen what a run is doing, or why it is not: where it is, how fast, what was lost, what to do.

    python -m launch.status RUN_DIR

It reads what the run has written and asks Slurm about its jobs; it changes nothing, and a run of any age is read in
seconds.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from launch import attempts
from launch.slurm.bad_nodes import read_bad_nodes
from launch.slurm.commands import fields_of_job
from launch.slurm.submission import jobs_of
from training.config.load import load_frozen
from training.config.run_directory import LEDGER_NAME
from training.config.schema import Launcher, RunConfig
from training.errors import AutarkyError, ExitCode
from training.lease import Sight, look
from training.plain_files import read_json
from training.reporting.expert_health import expert_health
from training.reporting.formatting import count, duration, percent, when
from training.reporting.goodput import Spent, goodput
from training.reporting.layer_health import layer_health
from training.reporting.metrics import FILE_NAME, last_record, latest_steps, read_metrics, read_newest
from training.reporting.records import (
    CheckpointRecord,
    ExpertsRecord,
    IncidentRecord,
    LayersRecord,
    Record,
    StartRecord,
    StepRecord,
    from_json_object,
)
from training.reporting.run_config import resume_command
from training.reporting.starts import end_times, read_starts

_TAIL_BYTES = 2**22
"""Of metrics.jsonl, for what is new: some 8,000 records."""
_LARGEST_WHOLE_BYTES = 2**26
"""A log up to this size is read whole, for the goodput ledger: some 100,000 steps, in a few seconds."""
_STEPS_OF_MEAN = 50
_SILENT_STEPS = 20.0
"""A run that has written nothing for so many steps' time is said to be silent."""
_MOST_LOSSES = 4
_JOB_FIELDS = ("JobState", "Reason", "Restarts", "RunTime", "TimeLimit", "EndTime", "NodeList", "ExitCode")


def main(argv: Sequence[str]) -> int:
    """Print the status of one run directory."""
    try:
        if len(argv) != 1 or argv[0] in ("-h", "--help"):
            print(__doc__)
            return ExitCode.DONE if argv and argv[0] in ("-h", "--help") else ExitCode.BAD_CONFIG
        for line in status(Path(argv[0])):
            print(line)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return ExitCode.DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the run directory holds."""

    directory: Path
    config: RunConfig
    ledger: dict[str, Any]
    recent: list[Record]
    """The newest records."""
    last_time_seconds: float
    """When the last of them was written; 0 without any."""
    steps: list[StepRecord]
    """Of them, those that count."""
    start: StartRecord | None
    holder: Sight | None
    now_seconds: float

    @property
    def state(self) -> str:
        """Return running, or how the run ended: done, blocked, failed, stopped, dead; or not started."""
        if self.holder is not None and not self.holder.is_gone:
            return "running"
        told = self.ledger.get("state", "not started")
        return "dead" if told == "running" else str(told)

    @property
    def step_seconds(self) -> float:
        """Return the mean of the newest steps of this training stage; 0 before the first."""
        mine = [step.seconds for step in self.steps[-_STEPS_OF_MEAN:] if step.stage == self.steps[-1].stage]
        return fmean(mine) if mine else 0.0


def status(directory: Path) -> Iterator[str]:
    """Yield the lines of a run's status.

    Raises:
        ConfigError: it is no run directory.
    """
    seen = _look(directory)
    yield from _headline(seen)
    yield from _progress(seen)
    yield from _numbers(seen)
    yield from _time(seen)
    yield from _stages(seen)
    yield from _incidents(seen)
    yield from _ends(seen)
    yield from _jobs(seen)
    yield from _advice(seen)


def _look(directory: Path) -> _Seen:
    config = load_frozen(directory)
    path = directory / FILE_NAME
    recent: list[Record] = []
    start, last_time_seconds = None, 0.0
    if path.is_file():
        read = read_newest(path, _TAIL_BYTES)
        recent, last_time_seconds = read.records, max(read.times_seconds, default=0.0)
        newest = [record for record in recent if isinstance(record, StartRecord)]
        start = newest[-1] if newest else _older_start(path)
    return _Seen(
        directory=directory,
        config=config,
        ledger=_read_ledger(directory),
        recent=recent,
        last_time_seconds=last_time_seconds,
        steps=latest_steps(recent),
        start=start,
        holder=look(directory),
        now_seconds=time.time(),
    )


def _older_start(path: Path) -> StartRecord | None:
    found = last_record(path, StartRecord.kind)
    try:
        record = None if found is None else from_json_object(found)
    except ValueError:
        return None  # of a version with other fields
    return record if isinstance(record, StartRecord) else None


def _read_ledger(directory: Path) -> dict[str, Any]:
    try:
        ledger = read_json(directory / LEDGER_NAME)
    except (OSError, ValueError):
        return {}  # not there before the ranks have met; a damaged one is refused by the next start
    return ledger if isinstance(ledger, dict) else {}


def _headline(seen: _Seen) -> Iterator[str]:
    where = ""
    if seen.start is not None:
        hosts = list(seen.start.hosts)
        names = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
        where = f", attempt {seen.start.attempt + 1}, {seen.start.world_size} devices on {names}"
    yield f"run {seen.directory.name}: {seen.state.upper()}{where}"
    if seen.start is not None:
        launched, last = seen.start.launched_seconds, seen.last_time_seconds
        ago = duration((seen.now_seconds if seen.state == "running" else last) - launched)
        yield f"  launched {when(launched)}, " + (f"{ago} ago" if seen.state == "running" else f"ran {ago}")


def _progress(seen: _Seen) -> Iterator[str]:
    total = sum(seen.config.num_steps(name) for name in seen.config.stages)
    if not seen.steps:
        older = attempts.last_step(seen.directory)
        yield f"  step {older:,} of {total:,}" if older else f"  no step of {total:,} was done yet"
        return
    newest, names = seen.steps[-1], list(seen.config.stages)
    place = f"training stage {newest.stage}"
    if newest.stage in names:
        first, num = seen.config.first_step(newest.stage), seen.config.num_steps(newest.stage)
        place += f" ({names.index(newest.stage) + 1} of {len(names)}), its step {newest.step - first:,} of {num:,}"
    left = f", ETA {duration((total - newest.step) * seen.step_seconds)}" if seen.state == "running" else ""
    yield f"  step {newest.step:,} of {total:,} ({percent(newest.step / total)}), {place}{left}"
    if seen.state == "running":
        silence = seen.now_seconds - seen.last_time_seconds
        loud = "  SILENT:" if silence > _SILENT_STEPS * seen.step_seconds else " "
        yield f"{loud} last record {duration(silence)} ago, a step takes {duration(seen.step_seconds)}"


def _numbers(seen: _Seen) -> Iterator[str]:
    if not seen.steps:
        return
    newest = seen.steps[-1]
    each = newest.tokens_per_second_per_device
    rate = count(newest.tokens_per_second) + (f" tokens/s ({count(each)} per device)" if each else " tokens/s")
    hfu = f", HFU {percent(newest.hfu)}" if newest.hfu is not None else ""
    yield (
        f"  loss {newest.loss:.4f}, gradient norm {newest.grad_norm:.3g}, learning rate {newest.lr:.2e}; {rate}, "
        f"MFU {percent(newest.mfu)}{hfu}; {count(newest.tokens)} tokens"
    )
    loads = [record for record in seen.recent if isinstance(record, ExpertsRecord)]
    layers = [record for record in seen.recent if isinstance(record, LayersRecord)]
    for health in (expert_health(seen.steps, loads[-1] if loads else None), layer_health(layers)):
        if health:
            yield f"  {health}"


def _time(seen: _Seen) -> Iterator[str]:
    path = seen.directory / FILE_NAME
    if not path.is_file():
        return
    if path.stat().st_size > _LARGEST_WHOLE_BYTES:
        yield f"  where the time went: python -m training.reporting {seen.directory} (the log is long)"
        return
    ledger = goodput(read_metrics(path), end_times(seen.directory))
    if ledger is None or not ledger.wall_seconds:
        return
    losses = sorted(((s, what) for what, s in ledger.spent.items() if what is not Spent.compute), reverse=True)
    told = ", ".join(f"{what} {percent(s / ledger.wall_seconds)}" for s, what in losses[:_MOST_LOSSES] if s > 0)
    yield f"  goodput {percent(ledger.share)} of {duration(ledger.wall_seconds)}; lost: {told or 'nothing'}"


def _stages(seen: _Seen) -> Iterator[str]:
    entries = seen.ledger.get("stages", [])
    told = [f"{entry['name']} {entry['status']}" for entry in entries if {"name", "status"} <= entry.keys()]
    if told:
        yield f"  training stages: {', '.join(told)}"
    saved = [record for record in seen.recent if isinstance(record, CheckpointRecord)]
    if saved:
        yield f"  newest checkpoint: {saved[-1].directory} (step {saved[-1].step:,})"


def _incidents(seen: _Seen) -> Iterator[str]:
    found = [record for record in seen.recent if isinstance(record, IncidentRecord)]
    if not found:
        path = seen.directory / FILE_NAME
        older = last_record(path, IncidentRecord.kind) if path.is_file() else None
        if older is not None:
            yield f"  last incident: step {older.get('step')}, {older.get('what')}: {older.get('message')}"
        return
    kinds = ", ".join(f"{times} {what}" for what, times in Counter(record.what for record in found).most_common())
    yield f"  incidents: {kinds}"
    yield f"  last incident: step {found[-1].step}, {found[-1].what}: {found[-1].message}"


def _ends(seen: _Seen) -> Iterator[str]:
    ends = [record for record in read_starts(seen.directory) if record["event"] == "end"]
    if ends and seen.state != "done":
        last = ends[-1]
        yield f"  last end: {last.get('name')} at step {last.get('step')}, {last.get('decision')}"
    if bad := read_bad_nodes(seen.directory):
        yield "  left out: " + "; ".join(f"{node} ({why})" for node, why in bad.items())


def _jobs(seen: _Seen) -> Iterator[str]:
    if seen.config.cluster.launcher is not Launcher.slurm:
        return
    for job in jobs_of(seen.directory):
        fields = fields_of_job(job)
        known = ", ".join(
            f"{name} {fields[name]}" for name in _JOB_FIELDS if fields.get(name) not in (None, "", "(null)")
        )
        yield f"  job {job}: {known or 'Slurm does not know it any more'}"


def _advice(seen: _Seen) -> Iterator[str]:
    match seen.state:
        case "blocked":
            yield f"  -> python -m launch.gate {seen.directory} says what the gate found, and lets you decide"
        case "dead" | "failed" | "stopped":
            yield f"  -> {resume_command(seen.directory, [])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Say how a run is: its job in Slurm, the last step, the last start, the last incident.

python -m launch.status RUN_DIR
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch import attempts
from launch.slurm.bad_nodes import read_bad_nodes
from launch.slurm.commands import fields_of_job
from launch.slurm.submission import jobs_of
from training.config.load import load_frozen
from training.config.run_directory import is_done
from training.config.schema import Launcher, RunConfig
from training.errors import AutarkyError, ExitCode
from training.reporting.metrics import FILE_NAME as METRICS_NAME
from training.reporting.metrics import last_record
from training.reporting.records import IncidentRecord
from training.reporting.starts import read_starts

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


def status(directory: Path) -> Iterator[str]:
    """Yield the lines of a run's status.

    Raises:
        ConfigError: it is no run directory.
    """
    config = load_frozen(directory)
    total = sum(config.num_steps(name) for name in config.stages)
    state, step = "done" if is_done(directory) else "not done", attempts.last_step(directory)
    yield f"run {directory.name}: {state}, step {step} of {total}"
    yield from _jobs(directory, config)
    ends = [record for record in read_starts(directory) if record["event"] == "end"]
    if ends:
        last = ends[-1]
        yield f"last end: {last.get('name')} at step {last.get('step')}, {last.get('decision')}"
    if bad := read_bad_nodes(directory):
        yield "left out: " + "; ".join(f"{node} ({why})" for node, why in bad.items())
    if incident := last_record(directory / METRICS_NAME, IncidentRecord.kind):
        yield f"last incident: step {incident.get('step')}, {incident.get('what')}: {incident.get('message')}"


def _jobs(directory: Path, config: RunConfig) -> Iterator[str]:
    if config.cluster.launcher is not Launcher.slurm:
        return
    for job in jobs_of(directory):
        fields = fields_of_job(job)
        known = ", ".join(
            f"{name} {fields[name]}" for name in _JOB_FIELDS if fields.get(name) not in (None, "", "(null)")
        )
        yield f"job {job}: {known or 'Slurm does not know it any more'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a published memory figure is of, and what the planner says that it is. No torch."""

from collections.abc import Mapping
from typing import Any

from training.planner.constants import CONSTANTS, Constants
from training.planner.job import Job
from training.planner.memory import Fit, memory, verdict
from training.planner.published import job_of, sweep_rows

_GIB = 2**30


def published_gib(row: Mapping[str, Any]) -> float | None:
    """Return the published figure in GiB; one that calls itself GB without more is taken for 10^9 bytes."""
    value = row.get("mem_gib")
    if value in (None, ""):
        return None
    kind = str(row.get("mem_kind"))
    decimal = "GB" in kind and "GiB" not in kind and "reserved" not in kind
    return float(str(value)) * (1e9 / _GIB if decimal else 1.0)


def predicted_gib(row: Mapping[str, Any], job: Job, constants: Constants = CONSTANTS) -> float:
    """Return the planner's figure for what a row's `mem_kind` says was measured.

    nanotron prints what was allocated at the highest during the update (its counters start anew before it), of rank 0,
    that is of the first pipeline stage; torchtitan what the allocator reserved, of all ranks; nvidia-smi shows the
    driver's context and the communicators too. Other "peaks" are of tensors.
    """
    kind, stages = str(row.get("mem_kind")), memory(job, constants)
    software = constants.software[job.software]
    if "allocated" in kind and "reserved" in kind:
        return stages[0].updating_bytes / _GIB
    if "max over ranks" in kind:
        return max(stage.tensors_bytes for stage in stages) * software.reserved_factor / _GIB
    if "nvidia-smi" in kind:
        return max(stage.total_bytes for stage in stages) / _GIB
    if "rank-0" in kind:
        return stages[0].tensors_bytes / _GIB
    return max(stage.tensors_bytes for stage in stages) / _GIB


def sweep_verdicts(constants: Constants = CONSTANTS) -> dict[tuple[bool, bool], int]:
    """Return how many of the sweep's runs, by (it ran out of memory, the planner says that it does not fit).

    All are counted but those of status Other, which ended in neither; a run that ended well after out-of-memory errors
    counts as out of memory, as the sweep's column does.
    """
    counts = {(ran_out, said): 0 for ran_out in (False, True) for said in (False, True)}
    for row in sweep_rows():
        if row["status"] != "Other":
            counts[row["oom"] == "True", verdict(job_of(row), constants).fit is Fit.does_not_fit] += 1
    return counts


def sweep_reserved(constants: Constants = CONSTANTS) -> list[float]:
    """Return relative errors of the memory that the allocator had reserved, of the sweep's runs that ended well."""
    errors = []
    for row in sweep_rows():
        if row["status"] == "Success" and row["oom"] == "False":
            job = job_of(row)
            factor = constants.software[job.software].reserved_factor
            first = memory(job, constants)[0]
            errors.append(first.tensors_bytes * factor / _GIB / float(row["mem_reserved_gb"]) - 1)
    return errors

"""What a person said about a gate, as a file in the run directory: it counts for one report and no other."""

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from training.durable_files import write_durably
from training.errors import DataError
from training.plain_files import read_json, typed

FOLDER = "approvals"


class Answer(StrEnum):
    """What a person can say."""

    approve = "approve"
    reject = "reject"


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """One answer."""

    answer: str
    """An `Answer`."""
    by: str
    """Who gave it."""
    because: str
    """Why."""
    time: str
    """When, ISO 8601 with its zone."""
    report_sha256: str
    """Of the report that was judged."""

    @property
    def reason(self) -> str:
        """A sentence for the ledger."""
        return (
            f"{'approved' if self.answer == Answer.approve else 'rejected'} by {self.by} on {self.time}: {self.because}"
        )


def sha256_of(report: Path) -> str:
    """Return the hash that ties an answer to a report.

    Raises:
        OSError: the report cannot be read.
    """
    return hashlib.sha256(report.read_bytes()).hexdigest()


def write_approval(run_directory: Path, training_stage: str, approval: Approval) -> Path:
    """Write an answer for a training stage's gate; the newest counts. Returns the file.

    Raises:
        StorageError: it cannot be written.
    """
    path = _path(run_directory, training_stage)
    path.parent.mkdir(exist_ok=True)
    write_durably(path, json.dumps(asdict(approval), indent=2, ensure_ascii=False) + "\n")
    return path


def approval_of(run_directory: Path, training_stage: str, report: Path) -> Approval | None:
    """Return the answer that was given for a training stage's report; None if none was, or for another report.

    Raises:
        DataError: the file is no answer.
    """
    path = _path(run_directory, training_stage)
    try:
        approval = typed(Approval, read_json(path))
        if approval.answer not in set(Answer):
            raise ValueError(f"answer is {approval.answer}")
        return approval if approval.report_sha256 == sha256_of(report) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no answer to a gate: {error}\n  -> python -m launch.gate {run_directory} writes one"
        ) from error


def _path(run_directory: Path, training_stage: str) -> Path:
    return run_directory / FOLDER / f"{training_stage}.json"

"""RUN_DIR/profile.json: which steps of a running run are to be profiled, and on which ranks."""

import json
from dataclasses import asdict
from pathlib import Path

from training.config.reporting_schema import ProfileConfig
from training.durable_files import write_durably
from training.errors import DataError
from training.plain_files import read_json, typed

FILE_NAME = "profile.json"

_LARGEST_BYTES = 2**20


def write_profile_request(run_directory: Path, request: ProfileConfig) -> Path:
    """Write a request for all ranks to see; it takes the place of an earlier one. Returns the file.

    Raises:
        StorageError: it cannot be written.
    """
    path = run_directory / FILE_NAME
    write_durably(path, json.dumps(asdict(request), indent=2) + "\n")
    return path


def read_profile_request(run_directory: Path) -> ProfileConfig | None:
    """Return what is asked for; None if nothing ever was.

    Raises:
        DataError: the file is no request.
    """
    path = run_directory / FILE_NAME
    try:
        request = typed(ProfileConfig, read_json(path, largest_bytes=_LARGEST_BYTES))
        if any(step < 1 for step in request.steps) or any(rank < 0 for rank in request.ranks):
            raise ValueError("steps are counted from 1, ranks from 0")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} asks for no profile: {error}\n  -> python -m launch.profile {run_directory} --steps 3 writes one"
        ) from error
    return request

"""Malicious files: a part of the drill, and proof that the payloads do harm where they are trusted."""

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.drills.payload_cases import all_cases
from tests.drills.payload_contents import YAML_FILES, numpy_objects, plain_pickle, torch_legacy, torch_zip
from tests.drills.payloads import drill

_EVERY = 5
_TOO_SLOW_FOR_HERE = ("zip bomb", "200 MB", "100 MB")


def test_no_planted_file_runs_code_or_fills_the_memory() -> None:
    cases = [case for case in all_cases() if not any(words in case.name for words in _TOO_SLOW_FOR_HERE)]
    assert len(cases) > 300
    tally = drill(cases[::_EVERY], seed=1)
    assert tally.problems == []
    assert tally.cases == len(cases[::_EVERY])


def test_the_payloads_would_run_in_the_hands_of_who_unpickles(tmp_path: Path) -> None:
    def explode(number: int) -> Path:
        marker = tmp_path / str(number)
        match number:
            case 0:
                pickle.loads(plain_pickle(marker))
            case 1:
                torch.load(BytesIO(torch_zip(marker)), weights_only=False)
            case 2:
                torch.load(BytesIO(torch_legacy(marker)), weights_only=False)
            case 3:
                np.load(BytesIO(numpy_objects(marker)), allow_pickle=True)
            case 4:
                YAML_FILES["python/object/apply"](tmp_path / "file", marker)
                yaml.unsafe_load((tmp_path / "file").read_text())
        return marker

    assert all(explode(number).exists() for number in range(5))

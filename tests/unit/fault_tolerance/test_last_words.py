import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.errors import CorruptCheckpoint, ExitCode, PeerLost, SilentCorruption, StorageError
from training.exit_report import put_away
from training.fault_tolerance.last_words import as_autarky_error, earlier_hang, leave
from training.process_identity import myself


def raised(error: Exception) -> Exception:
    """The error with a traceback, as an except clause sees it."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_known_error_leaves_its_message_and_its_exit_code(tmp_path: Path) -> None:
    code, text = leave(raised(StorageError("disk full\n  -> free space")), run_directory=tmp_path, rank=3)
    assert code is ExitCode.STORAGE
    assert text == "StorageError: disk full\n  -> free space"
    assert (tmp_path / "logs/rank-00003.error").read_text() == text + "\n"
    assert json.loads((tmp_path / "exit.json").read_text()) == {"exit_code": 8, "error": text, "rank": 3}


def test_an_unknown_error_leaves_its_traceback(tmp_path: Path) -> None:
    code, text = leave(raised(ValueError("what?")), run_directory=tmp_path, rank=0)
    assert code is ExitCode.FAILED
    assert text.startswith("Traceback")
    assert text.splitlines()[-1] == "ValueError: what?"


def test_only_the_first_rank_names_the_runs_exit_code(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rank: leave(StorageError(f"{rank}"), run_directory=tmp_path, rank=rank), range(8)))
    first = json.loads((tmp_path / "exit.json").read_text())
    assert first["error"] == f"StorageError: {first['rank']}"
    assert len(list((tmp_path / "logs").glob("rank-*.error"))) == 8


def test_a_rank_that_only_lost_its_peer_leaves_the_run_to_the_one_that_knows(tmp_path: Path) -> None:
    leave(PeerLost("gone"), run_directory=tmp_path, rank=0)
    assert not (tmp_path / "exit.json").exists()
    leave(CorruptCheckpoint("torn"), run_directory=tmp_path, rank=1)
    assert json.loads((tmp_path / "exit.json").read_text())["exit_code"] == ExitCode.CORRUPT_CHECKPOINT


def test_without_a_run_directory_the_text_is_all_there_is(tmp_path: Path) -> None:
    assert leave(StorageError("x"), run_directory=None, rank=0) == (ExitCode.STORAGE, "StorageError: x")
    leave(StorageError("x"), run_directory=tmp_path / "gone", rank=0)
    assert list(tmp_path.iterdir()) == []


def test_words_that_cannot_be_written_are_said_and_the_exit_code_stays(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder has to be")
    code, text = leave(StorageError("x"), run_directory=tmp_path, rank=0)
    assert code is ExitCode.STORAGE
    assert text.startswith("StorageError: x\n(this could not be written to ")


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5000",
        "Application timeout caused pair closure\nTimed out waiting 60000ms for recv operation to complete",
        "Gloo connectFullMesh failed with ...",
    ],
)
def test_what_gloo_says_of_a_dead_peer_is_a_lost_peer(message: str) -> None:
    assert isinstance(as_autarky_error(RuntimeError(message)), PeerLost)


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("Broken pipe"), StorageError("Connection reset by peer")):
        assert as_autarky_error(error) is error


def test_the_next_start_hears_once_that_the_one_before_hung(tmp_path: Path) -> None:
    hung = {"exit_code": 11, "error": "Hang: rank 1", "step": 7}
    for name in ("exit.json", "exit.earlier.json"):  # the second is what launch.submit makes of the first
        (tmp_path / name).write_text(json.dumps(hung))
        put_away(tmp_path)
        with pytest.raises(ZeroDivisionError), earlier_hang(tmp_path) as found:
            raise ZeroDivisionError
        with earlier_hang(tmp_path) as found:
            assert found == (7, "Hang: rank 1"), "it was not recorded the first time"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"exit_code": 5, "error": "NaN", "step": 3}', '{"exit_code": 11}'])
def test_what_was_no_hang_is_forgotten(text: str, tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text(text)
    put_away(tmp_path)
    with earlier_hang(tmp_path) as found:
        assert found is None
    assert list(tmp_path.iterdir()) == []


def test_a_corruption_names_those_at_fault_and_not_who_reports_it(tmp_path: Path) -> None:
    leave(SilentCorruption("weights differ", blamed={1: "node3"}), run_directory=tmp_path, rank=0)
    left = json.loads((tmp_path / "exit.json").read_text())
    assert (left["exit_code"], left["blamed"]) == (ExitCode.SILENT_CORRUPTION, [{"rank": 1, "host": "node3"}])
    assert "host" not in left


def test_a_host_is_called_what_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node3")
    assert myself().host == "node3"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert myself().host == os.uname().nodename

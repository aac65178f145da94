import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data import workers
from training.data.workers import Work, WorkerDied, run_all
from training.errors import DataError, Stopped


@pytest.fixture(autouse=True)
def processes_for_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEWEST_BYTES", 0)


def note(path: Path, keep_alive: Callable[[], None]) -> None:
    keep_alive()
    path.write_text(f"{os.getpid()} {os.environ.get('RAYON_NUM_THREADS')}")


def die(path: Path, keep_alive: Callable[[], None]) -> None:
    os._exit(9)


def refuse(path: Path, keep_alive: Callable[[], None]) -> None:
    raise DataError(f"{path.name} is bad\n  -> mend it")


def never_end(path: Path, keep_alive: Callable[[], None]) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(10_000)


def work(function: Callable[[Path, Callable[[], None]], None], folder: Path, number: int) -> list[Work]:
    return [Work(function=function, argument=folder / str(place), num_bytes=place + 1) for place in range(number)]


def test_all_work_is_done_in_other_processes_and_counted_once(tmp_path: Path) -> None:
    counted: list[int] = []
    run_all(work(note, tmp_path, 5), num_workers=2, keep_alive=counted.append)
    notes = [(tmp_path / str(place)).read_text().split() for place in range(5)]
    assert str(os.getpid()) not in {pid for pid, _ in notes}
    assert {threads for _, threads in notes} == {str(max(1, workers.available_cores() // 2))}
    assert sum(counted) == 1 + 2 + 3 + 4 + 5


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    counted: list[int] = []
    run_all(work(note, tmp_path, 3), num_workers=1, keep_alive=counted.append)
    assert {(tmp_path / str(place)).read_text().split()[0] for place in range(3)} == {str(os.getpid())}
    assert sum(counted) == 1 + 2 + 3


def test_a_process_that_dies_is_told_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"run the same command again, what is finished is kept"):
        run_all(work(die, tmp_path, 2), num_workers=2, keep_alive=lambda _: None)


def test_an_error_of_a_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is bad\n  -> mend it"):
        run_all(work(refuse, tmp_path, 2), num_workers=2, keep_alive=lambda _: None)


def test_who_is_told_to_stop_does_not_wait_for_work_that_has_begun(tmp_path: Path) -> None:
    def stop_once_begun(num_bytes: int) -> None:
        if sum(bool(path.read_text()) for path in tmp_path.iterdir()) == 2:
            raise Stopped("told to stop")

    with pytest.raises(Stopped):
        run_all(work(never_end, tmp_path, 2), num_workers=2, keep_alive=stop_once_begun)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]

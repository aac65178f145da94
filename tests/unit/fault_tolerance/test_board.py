"""The table in a real store."""

import threading
import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from training.fault_tolerance.blame import Status
from training.fault_tolerance.board import Board, NoAnswer, within
from training.process_identity import myself


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def status(beat: int) -> Status:
    return Status(
        beat=beat, section="step", step=3, seconds=0.5, operation="allreduce #2 (ranks 0-2)", started={"0 0-2": 2}
    )


def test_what_each_rank_said_last_is_in_the_table(store: dist.Store) -> None:
    boards = [Board(store, rank=rank, world_size=3) for rank in range(3)]
    assert boards[0].table() == {}
    assert boards[0].beat(status(1)) is None
    assert boards[2].beat(status(1)) is None
    assert boards[2].beat(status(2)) is None
    assert boards[1].table() == {0: status(1), 2: status(2)}, "rank 1 never said anything"
    boards[1].beat(replace(status(7), waits=True))
    assert boards[1].table()[1] == replace(status(7), waits=True)


def test_a_rank_is_known_once_it_has_introduced_itself(store: dist.Store) -> None:
    boards = [Board(store, rank=rank, world_size=2) for rank in range(2)]
    assert boards[1].who(0) is None
    boards[0].introduce(myself())
    assert boards[1].who(0) == myself()


def test_the_first_verdict_counts_and_every_beat_hears_it(store: dist.Store) -> None:
    boards = [Board(store, rank=rank, world_size=3) for rank in range(3)]
    assert boards[0].announce("first") == "first"
    assert boards[1].announce("second") == "first"
    assert boards[2].beat(status(1)) == "first"


def test_one_of_many_is_the_first_to_ask_a_question(store: dist.Store) -> None:
    answers: list[bool] = []
    boards = [Board(store, rank=rank, world_size=8) for rank in range(8)]
    threads = [threading.Thread(target=lambda b=b: answers.append(b.is_first("step-3-0"))) for b in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert boards[0].is_first("step-3-1"), "another question"


def test_a_call_that_hangs_is_given_up() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        within(0.1, never.wait)
    assert time.monotonic() - began < 5
    assert within(5, lambda: 7) == 7
    assert within(5, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)

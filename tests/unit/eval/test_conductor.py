"""Rank 0's tasks have a thread of their own; here alone, and on two real processes."""

import json
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eval import conductor
from eval.conductor import Conducted, TokenModel, conduct
from eval.requests import Continuation, Prompt
from tests.unit.eval.tiny import TinyEngine, make_data, make_lm, make_model
from training.engine.process_group import ProcessGroup
from training.errors import DataError, EvaluationFailed, Stopped
from training.parallel.layout import Layout

DATA = make_data(4)
EOS = DATA.tokenizer.eos_id
VOCAB_SIZE = DATA.tokenizer.vocab_size
ASKED = [Continuation(context_ids=[EOS, 5], continuation_ids=[6 + i, 7]) for i in range(5)]
PROMPTS = [Prompt(ids=[EOS, 5 + i], max_new_tokens=3, stop=("x",), temperature=0.5 * (i % 2), seed=i) for i in range(4)]


@dataclass
class Alone:
    """A job of one rank."""

    rank: int = 0
    told: list[str] = field(default_factory=list)

    def broadcast_text(self, text: str | None) -> str:
        assert text is not None
        self.told.append(json.loads(text)["what"])
        return text


class ToldToStop(TinyEngine):
    """An engine whose run is told to stop while the tasks are busy with something else."""

    def keep_alive(self) -> None:
        raise Stopped("SIGTERM")


def both(model: TokenModel) -> list[object]:
    return [[score.logprob for score in model.score(ASKED)], model.generate(PROMPTS), model.score([])]


def test_tasks_get_what_the_model_says_from_a_thread_of_their_own() -> None:
    lm, ranks, names = make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA), Alone(), []

    def work(model: TokenModel) -> list[object]:
        names.append(threading.current_thread().name)
        return both(model)

    assert conduct(lm, ranks, work, silent_seconds=60) == both(lm)
    assert names == ["evaluation"]
    assert ranks.told == ["score", "generate", "done"]


def test_a_task_that_fails_ends_the_evaluation_with_its_words() -> None:
    def work(model: TokenModel) -> None:
        model.score(ASKED)
        raise DataError("the items are gone")

    with pytest.raises(EvaluationFailed, match="DataError: the items are gone") as caught:
        conduct(make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA), Alone(), work, silent_seconds=60)
    assert isinstance(caught.value.__cause__, DataError)


def test_a_task_that_leaves_the_process_ends_the_evaluation_alone() -> None:
    def work(_model: TokenModel) -> None:
        sys.exit(3)

    with pytest.raises(EvaluationFailed, match="SystemExit: 3"):
        conduct(make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA), Alone(), work, silent_seconds=60)


def test_a_request_that_is_none_is_told_to_every_rank() -> None:
    ranks = Alone()
    wrong = Continuation(context_ids=[np.int64(1)], continuation_ids=[2])  # pyright: ignore[reportArgumentType]
    lm = make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA)
    with pytest.raises(EvaluationFailed, match="cannot be sent"):
        conduct(lm, ranks, lambda model: model.score([wrong]), silent_seconds=60)
    assert ranks.told == ["failed"]


def test_a_task_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, "PATIENCE_SECONDS", 0.05)
    released, ranks = threading.Event(), Alone()
    try:
        with pytest.raises(EvaluationFailed, match="given up"):
            conduct(
                make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA),
                ranks,
                lambda _model: released.wait(60),
                silent_seconds=0.3,
            )
    finally:
        released.set()
    assert ranks.told[:3] == ["wait", "wait", "wait"]
    assert ranks.told[-1] == "failed"


def test_a_run_that_is_told_to_stop_leaves_while_tasks_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, "PATIENCE_SECONDS", 0.05)
    released = threading.Event()
    lm = make_lm(ToldToStop(make_model(VOCAB_SIZE)), DATA)
    try:
        with pytest.raises(Stopped):
            conduct(lm, Alone(), lambda _model: released.wait(60), silent_seconds=60)
    finally:
        released.set()


def test_work_that_asks_for_nothing_says_that_it_goes_on() -> None:
    ranks = Alone()

    def work(model: Conducted) -> str:
        model.keep_alive()
        model.keep_alive()
        return "found"

    lm = make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA)
    assert conduct(lm, ranks, work, silent_seconds=60) == "found"
    assert ranks.told == ["wait", "wait", "done"]
    with pytest.raises(Stopped):
        conduct(make_lm(ToldToStop(make_model(VOCAB_SIZE)), DATA), Alone(), work, silent_seconds=60)


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    processes = ProcessGroup(rank=rank, world_size=2, local_rank=0, device=torch.device("cpu"), cpu_group=group)
    lm = make_lm(TinyEngine(make_model(VOCAB_SIZE), Layout(world_size=2)), DATA)
    found: list[object] = [conduct(lm, processes, both, silent_seconds=60)]
    try:
        conduct(lm, processes, lambda model: model.generate(PROMPTS) and 1 / 0, silent_seconds=60)
    except EvaluationFailed as error:
        found.append(str(error))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_real_processes_compute_and_fail_together(tmp_path: Path) -> None:
    mp.spawn(_in_process, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == [both(make_lm(TinyEngine(make_model(VOCAB_SIZE)), DATA)), "ZeroDivisionError: division by zero"]
    assert second == [None, "ZeroDivisionError: division by zero"]

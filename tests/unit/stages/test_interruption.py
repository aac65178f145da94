"""All ranks look at the votes of the same sum; here there is one rank, tests/integration has two."""

import math
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from training.engine.collectives import CollectiveLog
from training.engine.process_group import Ballot, ProcessGroup
from training.errors import Stopped
from training.fault_tolerance.heartbeat import Heartbeat
from training.fault_tolerance.signals import StopRequest
from training.stages.interruption import InterruptibleInference, Interruption


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    request = StopRequest()
    ballot = Ballot(lambda: request.is_told)
    device = torch.device("cpu")
    processes = ProcessGroup(rank=0, world_size=1, local_rank=0, device=device, cpu_group=group, ballot=ballot)
    yield Interruption(request=request, processes=processes)
    dist.destroy_process_group()


def test_a_vote_rides_on_every_sum_and_changes_none(interruption: Interruption) -> None:
    processes, request = interruption.processes, interruption.request
    values = [1.5, -0.0, 1e300, math.inf]
    assert processes.sum(values) == values
    interruption.check_after_sum()
    request.signal = signal.SIGTERM
    interruption.check_after_sum()  # nobody could have voted on it: alike on every rank
    assert processes.sum([math.nan, 2.0])[1] == 2.0
    with pytest.raises(Stopped, match="SIGTERM"):
        interruption.check_after_sum()


def test_a_check_asks_anew(interruption: Interruption) -> None:
    interruption.check()
    interruption.request.signal = signal.SIGUSR1
    with pytest.raises(Stopped, match="SIGUSR1"):
        interruption.check()


class CountingEngine:
    layout = "the layout"
    num_scored = 0

    def score(self, batch: Any, cache: Any) -> Any:
        self.num_scored += 1
        return batch


def test_an_evaluation_ends_before_its_next_batch(interruption: Interruption) -> None:
    engine = CountingEngine()
    scoring = InterruptibleInference(cast(Any, engine), interruption, Heartbeat(CollectiveLog()))
    assert scoring.layout == engine.layout
    assert scoring.score(cast(Any, "batch")) == "batch"
    interruption.request.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        scoring.score(cast(Any, "batch"))
    assert engine.num_scored == 1

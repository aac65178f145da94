"""What is asked of peers is seen, and only seen."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from training.engine.collectives import COLLECTIVES, TRANSFERS, CollectiveLog, flight_record

NO_COLLECTIVE = {
    "abort",
    "boxed",
    "get_group_store",
    "merge_remote_group",
    "name",
    "rank",
    "BackendType",  # a class
    "recv_anysource",  # only for dist.recv without a source, which nobody here calls
    "set_timeout",
    "shutdown",
    "size",
    "split_group",
    "unbox",
    "use_pg_for_symm_mem_rendezvous",
}


@pytest.fixture
def log() -> Iterator[CollectiveLog]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    found = CollectiveLog()
    end = found.watch()
    try:
        yield found
    finally:
        end()
        # As if nobody had ever watched.
        dist.all_reduce(torch.ones(1), async_op=True).wait()  # pyright: ignore[reportOptionalMemberAccess]
        dist.destroy_process_group()


def test_every_method_of_a_group_that_asks_something_of_peers_is_watched() -> None:
    methods = {
        name
        for name in dir(c10d.ProcessGroup)
        if not name.startswith("_") and callable(getattr(c10d.ProcessGroup, name))
    }
    assert methods - NO_COLLECTIVE == {name for name in (*COLLECTIVES, *TRANSFERS) if not name.startswith("_")}
    assert all(hasattr(c10d.ProcessGroup, name) for name in (*COLLECTIVES, *TRANSFERS))
    assert hasattr(c10d.Work, "wait")


def test_collectives_are_counted_by_group_and_their_results_are_the_same(log: CollectiveLog) -> None:
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, src=0)
    group = dist.new_group([0], backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    dist.barrier(group)
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    work.wait()
    assert tensor.tolist() == [1.0, 1.0, 1.0]
    assert dist.group.WORLD is not None
    assert log.started[f"{dist.group.WORLD.group_name} 0"] == 3
    assert log.started["new_group 0"] == 1
    assert sorted(log.started.values()) == [1, 1, 3]
    assert log.training.last == "allreduce #3 (ranks 0)"
    assert not log.training.waits
    assert log.training.waited_seconds > 0
    assert log.other.last == ""


def test_watching_ends(log: CollectiveLog) -> None:
    again = CollectiveLog()
    again.watch()()
    dist.all_reduce(torch.ones(1))
    assert again.started == {}
    assert len(log.started) == 1


def test_torch_keeps_a_record_of_its_own(log: CollectiveLog) -> None:
    dist.all_reduce(torch.ones(1))
    record = flight_record()
    assert record is not None
    assert b"all_reduce" in record

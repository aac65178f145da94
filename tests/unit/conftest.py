"""What unit tests share."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from training.engine.process_group import ProcessGroup


@pytest.fixture
def processes() -> Iterator[ProcessGroup]:
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    yield ProcessGroup(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), cpu_group=group)
    dist.destroy_process_group()

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.planner.jobs import CLUSTER, job
from training.planner.efficiency import EFFICIENCY
from training.planner.network import Collectives, Group, groups_of

COLLECTIVES = Collectives(CLUSTER, EFFICIENCY)
NODE = Group(size=8, members_per_node=8, span=8)
ACROSS = Group(size=64, members_per_node=8, span=64)
ONE_PER_NODE = Group(size=8, members_per_node=1, span=64)


def test_groups_are_dealt_out_tensor_first() -> None:
    groups = groups_of(job(tensor=4, context=2, replicas=4, pipeline=2, expert=4))
    assert groups.tensor == Group(4, 4, 4)
    assert groups.context == Group(2, 2, 8)
    assert groups.shards == Group(8, 2, 32)
    assert groups.expert == Group(4, 2, 16)
    assert groups.expert_replicas == Group(2, 1, 32)
    assert groups.pipeline_stride == 32
    assert not groups.expert_replicas.is_local


@given(num_bytes=st.floats(1, 1e12), group=st.sampled_from([NODE, ACROSS, ONE_PER_NODE]))
def test_times_grow_with_bytes_and_fall_with_bandwidth(num_bytes: float, group: Group) -> None:
    faster = Collectives(
        replace(CLUSTER, node_bandwidth=2 * CLUSTER.node_bandwidth, cluster_bandwidth=2 * CLUSTER.cluster_bandwidth),
        EFFICIENCY,
    )
    for name in ("all_gather", "all_reduce", "all_to_all"):
        seconds = getattr(COLLECTIVES, name)(num_bytes, group)
        assert 0 < getattr(faster, name)(num_bytes, group) < seconds
        assert getattr(COLLECTIVES, name)(2 * num_bytes, group) > seconds


def test_closed_forms_of_bandwidth_and_latency() -> None:
    node = CLUSTER.node_bandwidth * EFFICIENCY.node_links
    card = CLUSTER.cluster_bandwidth * EFFICIENCY.cluster_links
    gigabyte = 1e9
    assert COLLECTIVES.all_gather(gigabyte, NODE) == pytest.approx(gigabyte * 7 / 8 / node + 7 * 3e-6)
    # Eight members of a node share all its cards; NVLink is the narrower here.
    assert COLLECTIVES.all_gather(gigabyte, ACROSS) == pytest.approx(
        gigabyte * 63 / 64 / min(node, 8 * card) + 63 * 8e-6
    )
    assert COLLECTIVES.all_gather(gigabyte, ONE_PER_NODE) == pytest.approx(gigabyte * 7 / 8 / card + 7 * 8e-6)
    tree = 2 * (3 * 8e-6 + 7 * 3e-6)
    assert COLLECTIVES.all_reduce(gigabyte, ACROSS) == pytest.approx(
        2 * gigabyte * 63 / 64 / min(node, 8 * card) + tree
    )
    assert COLLECTIVES.send(gigabyte, stride=4) == pytest.approx(gigabyte / node + 3e-6)
    assert COLLECTIVES.send(gigabyte, stride=8) == pytest.approx(gigabyte / card + 8e-6)


def test_a_rank_alone_communicates_for_nothing() -> None:
    alone = Group(1, 1, 1)
    assert COLLECTIVES.all_gather(1e9, alone) == COLLECTIVES.all_reduce(1e9, alone) == 0
    assert COLLECTIVES.all_to_all(1e9, alone) == 0


def test_oversubscription_counts_only_between_pods() -> None:
    pods = Collectives(replace(CLUSTER, devices_per_pod=64, oversubscription=7.0), EFFICIENCY)
    assert pods.all_gather(1e9, ONE_PER_NODE) == COLLECTIVES.all_gather(1e9, ONE_PER_NODE)
    wide = Group(8, 1, 4096)
    assert pods.all_gather(1e9, wide) > 6 * COLLECTIVES.all_gather(1e9, wide)
    assert pods.send(1e9, stride=512) > 6 * COLLECTIVES.send(1e9, stride=512)


@given(copies=st.integers(1, 16))
def test_sending_a_token_once_to_a_node_is_never_slower(copies: int) -> None:
    once = COLLECTIVES.all_to_all(1e9, ACROSS, copies=copies, deduplicates=True)
    each = COLLECTIVES.all_to_all(1e9, ACROSS, copies=copies)
    assert once <= each * (1 + 1e-9)
    if copies == 1:
        assert once == pytest.approx(each)

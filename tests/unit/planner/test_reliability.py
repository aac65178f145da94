import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config.load import compose
from training.config.reliability_schema import ReliabilityConfig
from training.errors import ConfigError
from training.planner.checkpoint_cost import CheckpointCost, Storage
from training.planner.reliability import Interruptions, interruptions_of, seconds_at

COLD_START_SECONDS = ReliabilityConfig().cold_start_seconds


def test_the_default_rates_give_llama_3_its_failures() -> None:
    # arXiv:2407.21783, table 5: 419 unexpected interruptions in 54 days on 2,048 nodes.
    job = interruptions_of(ReliabilityConfig(), num_nodes=2048, devices_per_node=8, reload_seconds=0)
    assert job.failures_per_day * 54 == pytest.approx(419, rel=0.001)


@pytest.mark.parametrize(("devices", "hours"), [(16_384, 1.8), (131_072, 0.23)])
def test_a_rate_of_nodes_gives_the_published_projection(devices: int, hours: float) -> None:
    # arXiv:2410.21680: RSC-1, 6.50 failures per 1,000 node-days. Printed to two digits.
    reliability = ReliabilityConfig(failures_per_1000_node_days=6.5, job_failures_per_day=0)
    job = interruptions_of(reliability, num_nodes=devices // 8, devices_per_node=8, reload_seconds=0)
    assert job.mtbf_seconds / 3600 == pytest.approx(hours, rel=0.025)


@pytest.mark.parametrize(
    ("devices", "seconds"), [(8, 200), (16_384, 200), (22_000, 300), (43_000, 450), (98_000, 900), (132_000, 1200)]
)
def test_the_cold_start_is_linear_between_measured_points_and_beyond(devices: int, seconds: float) -> None:
    assert seconds_at(devices, COLD_START_SECONDS) == pytest.approx(seconds)


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_more_devices_never_start_sooner(few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert seconds_at(few, COLD_START_SECONDS) <= seconds_at(more, COLD_START_SECONDS)


def test_one_point_is_a_constant() -> None:
    assert seconds_at(1, ((1000, 30.0),)) == seconds_at(10**6, ((1000, 30.0),)) == 30.0


def test_without_failures_the_time_between_them_is_endless() -> None:
    assert Interruptions(failures_per_day=0.0).mtbf_seconds == float("inf")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.reliability.manual_share=1.5", r"manual_share=1\.5.*between 0.0 and 1.0"),
        ("cluster.reliability.repair_seconds=-1", r"repair_seconds=-1.*at least 0"),
        ("cluster.reliability.cold_start_seconds=[[2,1],[1,2]]", r"cold_start_seconds=.*by rising devices"),
        ("cluster.reliability.cold_start_seconds=[]", r"cold_start_seconds=.*by rising devices"),
        ("cluster.reliability.cold_start_seconds=[[2]]", r"cold_start_seconds=.*by rising devices"),
        ("cluster.power.pue=0.9", r"pue=0\.9.*at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([override])


def test_a_synchronous_save_stalls_for_its_whole_write() -> None:
    # BLOOM: 2.3 TB at 57.5 GB/s in 40 s (bigscience tr11 README); the copy to the host comes on top.
    storage = Storage(write_bytes_per_second=57.5e9, read_bytes_per_second=115e9)
    cost = storage.checkpoint_cost(checkpoint_bytes=2.3e12, num_devices=384, asynchronous=False)
    assert cost.stall_seconds == cost.write_seconds == pytest.approx(40 + 2.3e12 / 384 / 20e9)
    assert cost.reload_seconds == pytest.approx(20)


def test_an_asynchronous_save_stalls_for_the_copy_and_what_the_write_slows() -> None:
    storage = Storage(write_bytes_per_second=10e9, read_bytes_per_second=10e9, write_slowdown=0.25)
    cost = storage.checkpoint_cost(checkpoint_bytes=1e12, num_devices=80, asynchronous=True)
    assert cost.write_seconds == pytest.approx(100 + 0.625)
    assert cost.stall_seconds == pytest.approx(25 + 0.625)


def test_storage_that_stands_still_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.storage\.write_bytes_per_second=0"):
        Storage(write_bytes_per_second=0, read_bytes_per_second=1)
    with pytest.raises(ConfigError, match=r"cluster\.storage\.write_slowdown=1"):
        Storage(write_bytes_per_second=1, read_bytes_per_second=1, write_slowdown=1)
    with pytest.raises(ValueError, match="no less than its stall"):
        CheckpointCost(stall_seconds=2, write_seconds=1)

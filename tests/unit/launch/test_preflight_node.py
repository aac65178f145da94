"""One node's checks: every fault that the vendor's tools can report is found and named; a tool that hangs is left.

The vendor's tools are shell scripts on PATH here, the one place where a fake is right: there is no GPU, no InfiniBand
and no faulty hardware on the machines that run these tests. Formats are as the vendors document them (nvidia-smi 535
and later, ibstat of infiniband-diags, dcgmi 3, chronyc 4); nothing here has been compared with a real device.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.preflight.bounded import run_all
from launch.preflight.findings import Finding, NodeReport, Status, bad_nodes, table
from launch.preflight.gpus import dcgm, gpu_state, nvlinks, xids
from launch.preflight.infiniband import infiniband
from launch.preflight.machine import clock_service, disk_free, disk_speed, interface, stale_locks
from launch.preflight.meeting import connect, listen
from launch.preflight.node import check_node
from training.config.load import compose
from training.config.schema import RunConfig

GPU = "{index}, 550.54.15, {uncorrected}, {corrected}, {pending}, {failure}, {celsius}, {used}, {a}, {b}, {c}, {d}"
HEALTHY = dict.fromkeys("abcd", "Not Active") | {
    "uncorrected": "0",
    "corrected": "0",
    "pending": "No",
    "failure": "No",
    "celsius": "31",
    "used": "4",
}
CARD = """CA '{name}'
\tCA type: MT4129
\tNumber of ports: 1
\tPort 1:
\t\tState: {state}
\t\tPhysical state: LinkUp
\t\tRate: {rate}
\t\tBase lid: 7
\t\tLink layer: {layer}
"""


class Tools:
    """A folder of programs that is all there is on PATH, beside the shell's own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "sh").symlink_to("/bin/sh")
        (folder / "sleep").symlink_to("/bin/sleep")
        (folder / "cat").symlink_to("/bin/cat")
        monkeypatch.setenv("PATH", str(folder))

    def put(self, name: str, output: str, *, code: int = 0, before: str = "") -> None:
        text = self._folder / f"{name}.txt"
        text.write_text(output)
        program = self._folder / name
        program.write_text(f"#!/bin/sh\n{before}\ncat {text}\nexit {code}\n")
        program.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "tools", monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = compose(["experiment=smoke", f"run.root={tmp_path}/runs", f"data.prepared_root={tmp_path}/prepared"])
    return with_limits(config, nvlinks_per_gpu=2, infiniband_ports=2, infiniband_bits_per_second=400e9)


def with_limits(config: RunConfig, **limits: object) -> RunConfig:
    return replace(config, cluster=replace(config.cluster, preflight=replace(config.cluster.preflight, **limits)))


def smi(*gpus: dict[str, str]) -> str:
    return "".join(f"{GPU.format(index=index, **(HEALTHY | gpu))}\n" for index, gpu in enumerate(gpus))


def only(findings: list[Finding], status: Status) -> list[tuple[str, str]]:
    return [(finding.check, finding.seen) for finding in findings if finding.status is status]


def test_healthy_gpus_pass(tools: Tools, config: RunConfig) -> None:
    tools.put("nvidia-smi", smi({}, {}))
    findings = gpu_state(config)
    assert len(findings) == 8
    assert {finding.status for finding in findings} == {Status.ok}


@pytest.mark.parametrize(
    ("fault", "check", "seen"),
    [
        ({"uncorrected": "1"}, "gpu ecc uncorrected", "GPU 1: 1"),
        ({"pending": "Yes"}, "gpu rows to remap", "GPU 1: 1"),
        ({"pending": "1"}, "gpu rows to remap", "GPU 1: 1"),
        ({"failure": "Yes"}, "gpu rows lost", "GPU 1: 1"),
        ({"celsius": "71"}, "gpu temperature", "GPU 1: 71"),
        ({"used": "40321"}, "gpu memory used, MiB", "GPU 1: 40321"),
        ({"a": "Active"}, "gpu clocks", "GPU 1: hw_slowdown"),
        ({"b": "Active"}, "gpu clocks", "GPU 1: hw_thermal_slowdown"),
        ({"c": "Active"}, "gpu clocks", "GPU 1: hw_power_brake_slowdown"),
        ({"d": "Active"}, "gpu clocks", "GPU 1: sw_thermal_slowdown"),
    ],
)
def test_a_fault_of_one_gpu_is_found_and_the_gpu_named(
    fault: dict[str, str], check: str, seen: str, tools: Tools, config: RunConfig
) -> None:
    tools.put("nvidia-smi", smi({}, fault))
    findings = gpu_state(config)
    assert only(findings, Status.fail) == [(check, seen)]
    assert all(finding.remedy for finding in findings if finding.status is Status.fail)


def test_many_corrected_errors_are_a_warning_and_what_a_gpu_does_not_count_is_skipped(
    tools: Tools, config: RunConfig
) -> None:
    unsupported = {"uncorrected": "[N/A]", "pending": "[N/A]", "failure": "[N/A]"}
    tools.put("nvidia-smi", smi({"corrected": "20000001"} | unsupported, unsupported))
    findings = gpu_state(config)
    assert only(findings, Status.warn) == [("gpu ecc corrected", "GPU 0: 2e+07")]
    assert [check for check, _ in only(findings, Status.skipped)] == [
        "gpu ecc uncorrected",
        "gpu rows to remap",
        "gpu rows lost",
    ]
    assert only(findings, Status.fail) == []


def test_gpus_that_are_missing_or_do_not_answer(tools: Tools, config: RunConfig) -> None:
    assert only(gpu_state(config), Status.fail) == [("gpu count", "no nvidia-smi")]
    tools.put("nvidia-smi", smi({}))
    assert only(gpu_state(config), Status.fail) == [("gpu count", "1")]
    lost = "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost."
    tools.put("nvidia-smi", f"{lost}\n", code=15)
    assert only(gpu_state(config), Status.fail) == [("gpu count", f"0: {lost}")]


def test_nvlinks_are_counted_per_gpu(tools: Tools, config: RunConfig) -> None:
    gpu = "GPU {}: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: {}\n"
    tools.put("nvidia-smi", gpu.format(0, "26.562 GB/s") + gpu.format(1, "26.562 GB/s"))
    assert only(nvlinks(config), Status.ok) == [("nvlink", "2 on each of 2")]
    tools.put("nvidia-smi", gpu.format(0, "26.562 GB/s") + gpu.format(1, "<inactive>"))
    assert only(nvlinks(config), Status.fail) == [("nvlink", "GPU 1 has 1")]
    tools.put("nvidia-smi", "")
    assert only(nvlinks(config), Status.fail) == [("nvlink", "nothing")]


def test_the_drivers_errors_count_but_not_those_of_applications(tools: Tools) -> None:
    line = "[ 123.4] NVRM: Xid (PCI:0000:3b:00): {}, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
    tools.put("dmesg", line.format(31) + line.format(43))
    assert only(xids(), Status.ok) == [("gpu xid", "none")]
    tools.put("dmesg", line.format(13) + line.format(79))
    assert only(xids(), Status.fail) == [("gpu xid", "1, the last 79 at PCI:0000:3b:00")]
    tools.put("dmesg", "dmesg: read kernel buffer failed: Operation not permitted\n", code=1)
    assert len(only(xids(), Status.skipped)) == 1


def test_infiniband_ports_must_be_active_at_full_rate(tools: Tools, config: RunConfig) -> None:
    def card(number: int, state: str = "Active", rate: str = "400", layer: str = "InfiniBand") -> str:
        return CARD.format(name=f"mlx5_{number}", state=state, rate=rate, layer=layer)

    assert only(infiniband(config), Status.fail) == [("infiniband", "no ibstat")]
    tools.put("ibstat", card(0) + card(1) + card(2, rate="50", layer="Ethernet"))
    assert only(infiniband(config), Status.ok) == [("infiniband", "2 active")]
    tools.put("ibstat", card(0) + card(1, state="Down", rate="10"))
    assert only(infiniband(config), Status.fail) == [("infiniband", "1 active, mlx5_1 is Down")]
    tools.put("ibstat", card(0) + card(1, rate="200"))
    assert only(infiniband(config), Status.fail) == [("infiniband", "mlx5_1 has 200 Gb/s")]


def test_the_vendors_own_diagnosis_is_believed(tools: Tools, config: RunConfig) -> None:
    config = with_limits(config, dcgm_level=1)
    assert len(only(dcgm(config), Status.skipped)) == 1
    tools.put("dcgmi", "| Deployment  | Pass |\n| Memory      | Pass - All |\n")
    assert only(dcgm(config), Status.ok) == [("dcgmi diag", "Pass")]
    tools.put("dcgmi", "| Deployment  | Pass |\n| Memory      | Fail - GPU: 3 |\n", code=226)
    assert only(dcgm(config), Status.fail) == [("dcgmi diag", "Memory")]


def test_a_clock_that_nobody_keeps_right_is_a_warning(tools: Tools) -> None:
    assert len(only(clock_service(), Status.skipped)) == 1
    tools.put("timedatectl", "no\n")
    assert only(clock_service(), Status.warn) == [("clock service", "timedatectl: no")]
    tools.put("chronyc", "Reference ID : A9FEA97B\nLeap status     : Normal\n")
    assert only(clock_service(), Status.ok) == [("clock service", "chronyc: Normal")]
    tools.put("chronyc", "Reference ID : 00000000\nLeap status     : Not synchronised\n")
    assert only(clock_service(), Status.warn) == [("clock service", "chronyc: Not synchronised")]


def test_a_tool_that_hangs_is_killed_with_all_it_started_and_the_others_are_heard(
    tools: Tools, config: RunConfig, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    tools.put("nvidia-smi", "", before=f"echo $$ > {pid}; sleep 300")
    tools.put("dmesg", "")
    begun = time.monotonic()
    findings = run_all({"gpus": lambda: gpu_state(config), "gpu xid": xids}, seconds=1.0)
    assert time.monotonic() - begun < 10
    assert only(findings, Status.fail) == [("gpus", "no answer")]
    assert only(findings, Status.ok) == [("gpu xid", "none")]
    shell = Path(f"/proc/{pid.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while shell.exists() and " Z " not in shell.read_text():
        assert time.monotonic() < deadline, "the tool still runs"
        time.sleep(0.02)


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise OSError("Input/output error")

    def dies() -> list[Finding]:
        os._exit(1)

    findings = run_all({"disk": broken, "driver": dies}, seconds=10)
    assert [(finding.check, finding.status) for finding in findings] == [("disk", Status.fail), ("driver", Status.fail)]
    assert "Input/output error" in findings[0].seen


def test_disks_are_measured(config: RunConfig, tmp_path: Path) -> None:
    assert only(disk_free(with_limits(config, free_bytes=1.0)), Status.fail) == []
    failed = disk_free(with_limits(config, free_bytes=1e18))
    assert [finding.check for finding in failed] == ["disk free, run.root", "disk free, data.prepared_root"]
    assert {finding.status for finding in failed} == {Status.fail}
    assert disk_speed(with_limits(config, write_bytes_per_second=1.0))[0].status is Status.ok
    assert disk_speed(with_limits(config, write_bytes_per_second=1e15))[0].status is Status.warn
    assert not list(tmp_path.glob(".speed*"))


def test_a_lock_that_a_dead_build_left_is_found(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert stale_locks(str(tmp_path))[0].status is Status.ok
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    (finding,) = stale_locks(str(tmp_path))
    assert (finding.status, finding.seen) == (Status.warn, str(lock))


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert interface("lo")[0].status is Status.ok
    (finding,) = interface("eth7")
    assert finding.status is Status.fail
    assert "lo" in finding.remedy


def test_nodes_meet_at_a_port(free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    checks = {"first": lambda: listen(address, 2, seconds=20)}
    checks |= {f"other {number}": lambda: connect(address, seconds=20) for number in range(2)}
    assert {finding.status for finding in run_all(checks, seconds=30)} == {Status.ok}


def test_a_port_that_nobody_listens_at_or_that_is_taken_is_a_failure(free_port: int) -> None:
    (finding,) = connect(f"127.0.0.1:{free_port}", seconds=0.5)
    assert (finding.status, "refused" in finding.seen.lower()) == (Status.fail, True)
    both = run_all(
        {
            "one": lambda: listen(f"127.0.0.1:{free_port}", 1, seconds=2),
            "two": lambda: listen(f"127.0.0.1:{free_port}", 1, seconds=2),
        },
        seconds=10,
    )
    assert sorted(finding.status.value for finding in both) == ["fail", "warn"]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_node_runs_all_checks_that_its_config_asks_for(tools: Tools, config: RunConfig) -> None:
    accelerator = replace(config.cluster.accelerator, device="cuda")
    config = replace(config, cluster=replace(config.cluster, accelerator=accelerator))
    tools.put("nvidia-smi", smi({}, {"uncorrected": "3"}))
    tools.put("ibstat", CARD.format(name="mlx5_0", state="Active", rate="400", layer="InfiniBand") * 2)
    report = check_node(with_limits(config, free_bytes=1.0))
    failed = only(report.findings, Status.fail)
    assert ("gpu ecc uncorrected", "GPU 1: 3") in failed
    assert {finding.check for finding in report.findings} >= {"disk speed", "nvlink", "gpu xid", "infiniband"}
    assert report.facts["torch"].startswith("2.")


def test_the_table_names_node_check_seen_expected_and_what_to_do() -> None:
    bad = Finding(check="gpu count", status=Status.fail, seen="7", expected="8", remedy="reboot the node")
    slow = Finding(check="disk speed", status=Status.warn, seen="3 MB/s", expected="50 MB/s", remedy="look")
    good = Finding(check="clock", status=Status.ok, seen="0 s", expected="within 2 s")
    reports = [NodeReport(node="n1", findings=[good, slow]), NodeReport(node="n22", findings=[bad])]
    assert bad_nodes(reports) == ["n22"]
    assert table(reports).splitlines() == [
        "node  check             seen    expected  what to do",
        "n1    disk speed  WARN  3 MB/s  50 MB/s   look",
        "n22   gpu count   FAIL  7       8         reboot the node",
        "preflight: 1 of 2 nodes failed: n22",
    ]
    assert table([NodeReport(node="n1", findings=[good])]) == "preflight: 1 node passed"

"""Nodes are compared, silent ones named, and whatever a node does, asking it ends in time."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launch.preflight import across
from launch.preflight.__main__ import main
from launch.preflight.across import to_json
from launch.preflight.ask import Reply, Way, by_srun, here, over_ssh
from launch.preflight.findings import Finding, NodeReport, Status, report_of
from launch.preflight.meeting import whose_fault
from launch.preflight.node import MARK
from training.config.cluster_schema import HostfileConfig
from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import ExitCode


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    paths = [f"run.root={tmp_path}/runs", f"data.prepared_root={tmp_path}/prepared"]
    return compose(["experiment=smoke", *paths, "cluster.preflight.free_bytes=0"])


def ways(*commands: list[str]) -> Way:
    return Way(nodes=[f"n{number}" for number in range(len(commands))], commands=lambda _: list(commands))


def failures(report: NodeReport) -> dict[str, str]:
    return {finding.check: finding.seen for finding in report.findings if finding.status is Status.fail}


def test_a_node_that_says_nothing_is_named_with_what_it_said_instead(config: RunConfig) -> None:
    nobody = ["sh", "-c", "echo Welcome; echo 'ssh: connect to host n1: No route to host' >&2; exit 255"]
    torn = ["sh", "-c", f"printf '%s' '{MARK}{{\"number\": 2, \"begun\"'"]
    reports = across.run(config, ways(["no-such-program"], nobody, torn), meet=None)
    assert [report.node for report in reports] == ["n0", "n1", "n2"]
    assert failures(reports[0]) == {"reachable": "no-such-program: No such file or directory"}
    assert failures(reports[1]) == {"reachable": "exit code 255: ssh: connect to host n1: No route to host"}
    assert "begun" in failures(reports[2])["reachable"]
    assert list(Path(config.run.root).iterdir()) == []


def test_asking_ends_in_time_even_if_a_child_keeps_the_pipe_open(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    keeps = f"setsid sh -c 'echo $$ > {pid}; exec sleep 60' & sleep 60"
    begun = time.monotonic()
    (reply,) = ways(["sh", "-c", keeps]).ask([], seconds=1.0)
    assert time.monotonic() - begun < 10
    assert reply.problem == "no answer within 1 s"
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_silent_nodes_of_a_common_command_are_asked_again_alone(config: RunConfig) -> None:
    """One that cannot even start it ends it for all others, as with srun."""
    module = next(iter(here("n").command_lines(["launch.preflight"])))

    def alone(words: Sequence[str], number: int) -> list[str]:
        return ["false"] if number == 1 else [str(number) if word == "{number}" else word for word in words]

    assert module[-1] == "launch.preflight"
    reports = across.run(config, Way(nodes=["n0", "n1", "n2"], commands=lambda _: [["false"]], alone=alone), meet=None)
    assert [report.node for report in reports if report.failed] == ["n1"]
    assert failures(reports[1]) == {"reachable": "exit code 1: nothing"}


def met(node: str, status: Status | None) -> NodeReport:
    findings = [] if status is None else [Finding(check="rendezvous port", status=status, seen="", expected="")]
    return NodeReport(node=node, findings=findings, facts={} if status is None else {"python": "3"})


@pytest.mark.parametrize(
    ("statuses", "bad"),
    [
        ([Status.ok, Status.ok, Status.ok], []),
        ([Status.warn, Status.ok, Status.fail], ["n2"]),
        ([Status.warn, Status.fail], ["n1"]),  # of two it could be either; the first one did listen
        ([Status.warn, Status.fail, Status.fail], ["n0"]),
        ([Status.fail, Status.fail, Status.fail], ["n0"]),
        ([None, Status.fail, Status.fail], []),  # that it says nothing is a finding of its own
        ([Status.warn, Status.fail, None], ["n1"]),
    ],
)
def test_a_meeting_that_fails_is_the_fault_of_one_side(statuses: list[Status | None], bad: list[str]) -> None:
    reports = whose_fault([met(f"n{number}", status) for number, status in enumerate(statuses)])
    assert [report.node for report in reports if report.failed] == bad


def test_a_clock_is_wrong_only_if_the_question_cannot_explain_it(config: RunConfig) -> None:
    def seen(begun: float, ended: float) -> Finding:
        reply = Reply(asked=1000.0, came=1010.0, lines=[], problem=None)
        return across._clock(config, across._Heard(report=NodeReport(node="n"), begun=begun, ended=ended, reply=reply))

    assert seen(1001.0, 1009.0).status is Status.ok
    assert seen(1009.9, 1011.9).status is Status.ok  # 1.9 s ahead, the limit is 2
    ahead, behind = seen(1015.0, 1025.0), seen(400.0, 409.0)
    assert (ahead.status, ahead.seen) == (Status.fail, "+15.0 s")
    assert (behind.status, behind.seen) == (Status.fail, "-600.0 s")


def test_the_node_that_differs_is_the_one_to_blame() -> None:
    same = {"torch": "2.13.0", "code": "abc"}
    reports = [NodeReport(node=f"n{number}", facts=same) for number in range(3)]
    reports.append(NodeReport(node="n3", facts=same | {"torch": "2.12.1"}))
    reports.append(NodeReport(node="silent"))
    compared = across._compared(reports)
    assert [failures(report) for report in compared] == [{}, {}, {}, {"version of torch": "2.12.1"}, {}]
    assert [finding.check for finding in compared[0].findings] == ["versions"]


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--node-only", "--number", "1", "--count", "2"]) == 0
    line = capsys.readouterr().out
    report = report_of(json.loads(line.removeprefix(MARK)))
    assert failures(report) == {"shared folder": f"{tmp_path / 'nowhere'} is not there"}


def test_commands_reach_each_node_with_its_index() -> None:
    words = ["python", "-m", "x", "a b", "--number", "{number}"]
    assert here("me").commands(words) == [["python", "-m", "x", "a b", "--number", "0"]]
    ssh = over_ssh(["a", "b"], HostfileConfig(path="/h", ssh_port=2222, ssh_config="/c")).commands(words)
    assert ssh[1] == ["ssh", "-o", "BatchMode=yes", "-F", "/c", "-p", "2222", "b", "python -m x 'a b' --number 1"]
    way = by_srun(["a", "b"], ["--mpi=none"])
    (srun,) = way.commands(words)
    assert srun[:5] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=a,b"]
    assert {"--overlap", "--mpi=none"} <= set(srun)
    assert srun[-3:] == ["bash", "-c", "exec python -m x 'a b' --number \"$SLURM_NODEID\""]
    assert way.alone is not None
    alone = way.alone(words, 1)
    assert alone[:5] == ["srun", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--nodelist=b"]
    assert alone[-1] == "exec python -m x 'a b' --number 1"


def test_one_machine_is_checked_whole(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=smoke", f"run.root={config.run.root}", f"data.prepared_root={config.data.prepared_root}"]
    assert main([*words, "cluster.preflight.free_bytes=0", "--json"]) == ExitCode.DONE
    told = json.loads(capsys.readouterr().out)
    assert told["bad"] == []
    checks = {finding["check"]: finding["status"] for finding in told["nodes"][0]["findings"]}
    assert checks["shared folder"] == checks["versions"] == checks["clock"] == "ok"
    assert main([*words, "cluster.preflight.free_bytes=1e18"]) == ExitCode.PREFLIGHT
    printed = capsys.readouterr()
    assert "disk free, run.root" in printed.out
    assert "-> " in printed.err
    assert main([*words, "cluster.preflight.free_bytes=1e18", "--node-only"]) == ExitCode.PREFLIGHT


def test_an_impossible_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=smoke", "cluster=slurm"]) == ExitCode.BAD_CONFIG
    assert "allocation" in capsys.readouterr().err
    assert main(["experiment=smok"]) == ExitCode.BAD_CONFIG


def test_the_json_lists_the_nodes_to_leave_out() -> None:
    bad = Finding(check="gpu count", status=Status.fail, seen="7", expected="8")
    told = json.loads(to_json([NodeReport(node="n1"), NodeReport(node="n2", findings=[bad])]))
    assert told["bad"] == ["n2"]
    assert report_of(told["nodes"][1]) == NodeReport(node="n2", findings=[bad])


@pytest.mark.parametrize(
    "values", [[], None, {"node": "n"}, {"node": "n", "facts": {}, "findings": [{"status": "good"}]}, {"findings": 3}]
)
def test_what_is_no_report_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match=r"is no|good"):
        report_of(values)


def test_a_collective_that_is_too_slow_or_never_ends_is_a_failure(config: RunConfig) -> None:
    limits = replace(config.cluster.preflight, collective_bytes_per_second=1e9, collective_seconds=1.0)
    config = replace(config, cluster=replace(config.cluster, preflight=limits))
    given: list[list[str]] = []

    def measured(rate: float | None):
        def run_ranks(words: object, seconds: float) -> int:
            assert isinstance(words, list)
            given.append(words)
            if rate is not None:
                Path(words[1]).write_text(json.dumps({"bytes_per_second": rate}))
            return 0 if rate else 1

        return run_ranks

    way = here("me")
    seen = [across.run(config, way, meet=None, run_ranks=measured(rate))[0] for rate in (2e9, 0.5e9, None)]
    assert [failures(report) for report in seen] == [
        {},
        {"collective": "0.5 GB/s"},
        {"collective": "no result within 1 s (exit code 1)"},
    ]
    assert given[0][0] == "training.bandwidth"

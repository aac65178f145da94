"""All nodes of a run: ask each, compare what must be equal, judge, and measure the collective over all of them."""

import json
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.preflight.ask import AT_ONCE, Reply, Way
from launch.preflight.findings import Finding, NodeReport, Status, report_of
from launch.preflight.meeting import leave_nonce, shared_folder, whose_fault
from launch.preflight.node import MARK
from training.config.load import freeze
from training.config.schema import RunConfig
from training.errors import StorageError
from training.plain_files import parse_json, read_json

RunRanks = Callable[[Sequence[str], float], int]
"""Starts a module as all ranks of the run, as its launcher does: (words after -m, limit in seconds) -> exit code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Heard:
    """A node's report, and its clock at the begin and end of its checks."""

    report: NodeReport
    begun: float
    ended: float
    reply: Reply


def run(config: RunConfig, way: Way, *, meet: str | None, run_ranks: RunRanks | None = None) -> list[NodeReport]:
    """Return a report per node of a way, in its order; whatever a node does, this ends.

    Args:
        config: the run that is to start on these nodes.
        way: how they are asked.
        meet: HOST:PORT on the first of them where ranks will meet; None looks at no port.
        run_ranks: starts ranks on all of them for the bandwidth test; None leaves that out.

    Raises:
        StorageError: not even this machine can write to run.root.
    """
    with _shared_folder(config) as folder:
        nonce = secrets.token_hex(16)
        leave_nonce(folder, nonce)
        heard, replies = _ask(config, way, folder, meet)
        reports = [_report(way, number, heard, replies[number]) for number in range(len(way.nodes))]
        reports = [
            _with(report, [_clock(config, heard[number]), shared_folder(folder, number, nonce)])
            if number in heard and report.facts  # one that sees nothing has said so
            else report
            for number, report in enumerate(reports)
        ]
        reports = _compared(whose_fault(reports))
        if run_ranks is not None and not any(report.failed for report in reports):
            reports[0] = _with(reports[0], bandwidth(config, folder, run_ranks))
    return reports


def node_words(folder: Path | str, *, count: int = 1, meet: str | None = None) -> list[str]:
    """Return the module, with its arguments, that a node runs to be checked as one of several, or alone."""
    words = ["launch.preflight", str(folder), "--node-only", "--number", "{number}", "--count", str(count)]
    return [*words, *(["--meet", meet] if meet is not None else [])]


def _ask(config: RunConfig, way: Way, folder: Path, meet: str | None) -> tuple[dict[int, _Heard], dict[int, Reply]]:
    """Return what nodes reported, and the replies that they were in or should have been, all by the nodes' indices."""
    seconds = config.cluster.preflight.check_seconds + way.start_seconds
    count = len(way.nodes)
    all_replies = way.ask(node_words(folder, count=count, meet=meet), seconds=seconds)
    heard = _heard(all_replies)
    replies = dict(enumerate(all_replies if len(all_replies) == count else all_replies * count))
    silent = [number for number in replies if number not in heard]
    if len(silent) > 1 and (heard or len(silent) <= AT_ONCE):  # else what is wrong is wrong everywhere
        again = way.ask_again(node_words(folder), silent, seconds=seconds)
        replies |= again
        heard |= _heard(list(again.values()))
    return heard, replies


@contextmanager
def _shared_folder(config: RunConfig) -> Iterator[Path]:
    """Yield a folder beside the runs with the run's config in it, for as long as nodes are asked."""
    try:
        Path(config.run.root).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".preflight-", dir=config.run.root))
        os.chmod(folder, 0o755)
    except OSError as error:
        remedy = "free space, or choose another run.root"
        raise StorageError(f"run.root={config.run.root} cannot be written: {error}\n  -> {remedy}") from error
    try:
        freeze(config, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a node that hangs may still hold a file there


def _heard(replies: Sequence[Reply]) -> dict[int, _Heard]:
    """Return what nodes reported, by their index."""
    found: dict[int, _Heard] = {}
    for reply in replies:
        for line in reply.lines:
            _, mark, text = line.partition(MARK)
            if mark:
                try:
                    values: dict[str, Any] = parse_json(text)
                    number, begun, ended = int(values["number"]), float(values["begun"]), float(values["ended"])
                    found[number] = _Heard(report=report_of(values), begun=begun, ended=ended, reply=reply)
                except (ValueError, KeyError, TypeError):
                    continue  # a torn line is no answer: the node counts as silent
    return found


def _report(way: Way, number: int, heard: Mapping[int, _Heard], reply: Reply) -> NodeReport:
    """Return a node's report under the name that it is known by, or that there is none."""
    name = way.nodes[number]
    if number in heard:
        return replace(heard[number].report, node=name)
    seen = reply.problem or f"no report: {reply.lines[-1][:100] if reply.lines else 'nothing'}"
    remedy = "try the same by hand; is the node up, and does it see code, interpreter and run.root?"
    finding = Finding(check="reachable", status=Status.fail, seen=seen, expected="a report", remedy=remedy)
    return NodeReport(node=name, findings=[finding])


def _clock(config: RunConfig, heard: _Heard) -> Finding:
    """Return how far a node's clock is off for sure: beyond what the time of the question can explain."""
    limit = config.cluster.preflight.clock_offset_seconds
    reply = heard.reply
    offset = max(heard.ended - reply.came, 0.0) or min(heard.begun - reply.asked, 0.0)
    good = abs(offset) <= limit
    return Finding(
        check="clock",
        status=Status.ok if good else Status.fail,
        seen=f"{offset:+.1f} s" if offset else "0 s",
        expected=f"within {limit:g} s of this machine's",
        remedy="" if good else "start chronyd on the node (chronyc makestep)",
    )


def _compared(reports: Sequence[NodeReport]) -> list[NodeReport]:
    """Return the reports with a finding for every fact in which a node differs from most others."""
    names = sorted({name for report in reports for name in report.facts})
    usual = {
        name: Counter(report.facts.get(name) for report in reports if report.facts).most_common(1)[0][0]
        for name in names
    }
    compared = []
    for report in reports:
        others = {name: value for name, value in report.facts.items() if value != usual[name]}
        findings = [
            Finding(
                check=f"version of {name}",
                status=Status.fail,
                seen=value,
                expected=f"{usual[name]}, as on most nodes",
                remedy="give all nodes the same environment and code",
            )
            for name, value in others.items()
        ]
        if report.facts and not findings:
            findings = [Finding(check="versions", status=Status.ok, seen="equal", expected="equal on all nodes")]
        compared.append(_with(report, findings))
    return compared


def bandwidth(config: RunConfig, folder: Path, run_ranks: RunRanks) -> list[Finding]:
    """Return whether an all-reduce over all ranks is as fast as it should be; [] if nobody said how fast that is.

    Args:
        config: the run whose ranks they are.
        folder: one that this machine and the first rank see, for the result.
        run_ranks: starts them.
    """
    limits = config.cluster.preflight
    wanted = limits.collective_bytes_per_second
    if wanted is None:
        return []
    result = folder / "bandwidth.json"
    words = ["training.bandwidth", str(result), str(limits.collective_bytes), str(int(limits.collective_seconds))]
    code = run_ranks(words, limits.collective_seconds)
    expected = f"{wanted / 1e9:g} GB/s"
    try:
        measured = float(read_json(result)["bytes_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        seen = f"no result within {limits.collective_seconds:g} s (exit code {code})"
        remedy = "a rank did not come or a link is dead: the lines above say more; halve the nodes to find it"
        return [Finding(check="collective", status=Status.fail, seen=seen, expected=expected, remedy=remedy)]
    good = measured >= wanted
    remedy = "" if good else "look for a slow link (halve the nodes), NCCL_DEBUG=INFO says which network is used"
    status = Status.ok if good else Status.fail
    return [
        Finding(check="collective", status=status, seen=f"{measured / 1e9:.3g} GB/s", expected=expected, remedy=remedy)
    ]


def _with(report: NodeReport, findings: Sequence[Finding]) -> NodeReport:
    return replace(report, findings=[*report.findings, *findings])


def to_json(reports: Sequence[NodeReport]) -> str:
    """Return the reports for a program; `bad` lists the nodes that the run must not start with."""
    return json.dumps(
        {"bad": [report.node for report in reports if report.failed], "nodes": [asdict(r) for r in reports]}
    )

"""One finding of a check, one node's report, and the table that a person reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What a finding means for the start."""

    ok = "ok"
    warn = "warn"
    """Worth knowing; the run starts."""
    fail = "fail"
    """The run does not start with this node."""
    skipped = "skipped"
    """Nothing to look at here, or nothing to look with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check saw."""

    check: str
    """Short name: disk free, gpu ecc."""
    status: Status
    seen: str
    """What there is."""
    expected: str
    """What there should be."""
    remedy: str = ""
    """What to do; empty if nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeReport:
    """All findings of one node."""

    node: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    """What must be equal on all nodes: name -> value."""

    @property
    def failed(self) -> bool:
        """Return whether the run must not start with this node."""
        return any(finding.status is Status.fail for finding in self.findings)


def finding_of(values: Any) -> Finding:
    """Return the finding that JSON values describe.

    Raises:
        ValueError: they describe none.
    """
    try:
        texts = {name: str(value) for name, value in values.items()}
        return Finding(**(texts | {"status": Status(texts["status"])}))  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{values!r} is no finding") from error


def report_of(values: Any) -> NodeReport:
    """Return the report that JSON values describe.

    Raises:
        ValueError: they describe none.
    """
    try:
        findings = [finding_of(item) for item in values["findings"]]
        facts = {str(name): str(value) for name, value in values["facts"].items()}
        return NodeReport(node=str(values["node"]), findings=findings, facts=facts)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{values!r} is no report") from error


def bad_nodes(reports: Sequence[NodeReport]) -> list[str]:
    """Return the nodes that the run must not start with, for a scheduler's list of excluded ones."""
    return [report.node for report in reports if report.failed]


def table(reports: Sequence[NodeReport]) -> str:
    """Return a line per finding that somebody should look at, and a last line that counts."""
    rows = [("node", "check", "", "seen", "expected", "what to do")]
    rows += [
        (report.node, finding.check, finding.status.value.upper(), finding.seen, finding.expected, finding.remedy)
        for report in reports
        for finding in report.findings
        if finding.status in (Status.fail, Status.warn)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(f"{word:<{width}}" for word, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    ]
    bad = bad_nodes(reports)
    verdict = (
        f"preflight: {len(bad)} of {len(reports)} nodes failed: {', '.join(bad)}"
        if bad
        else (f"preflight: {len(reports)} node{'s' if len(reports) > 1 else ''} passed")
    )
    return "\n".join([*([line.rstrip() for line in lines] if len(rows) > 1 else []), verdict])

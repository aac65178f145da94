"""The team's dashboard in Weights & Biases, as code: one saved view over all runs of a project.

    python -m training.reporting.dashboard --entity TEAM --project autarky            # makes a view, says where it is
    python -m training.reporting.dashboard … --replace URL                            # makes an existing view this one
    python -m training.reporting.dashboard … --print                                  # shows it, asks no server

Needs `pip install wandb-workspaces==0.4.13`, which training does not. wandb's own samples of processor, devices and
network are in the section System that it adds to every run.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.errors import ConfigError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Autarky"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A line per run and metric."""

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    """Regular expression of metrics whose names depend on the model or the evaluation suites, instead of `metrics`."""
    over: str = "step"
    """step or tokens."""
    is_log: bool = False
    """Logarithmic upwards."""


def _train(*names: str) -> tuple[str, ...]:
    return tuple(f"train/{name}" for name in names)


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Loss and evaluations": (
        Chart(title="Loss over tokens", metrics=_train("loss"), over="tokens"),
        Chart(title="Loss, and that of steps done again", metrics=("train/loss", "redone/train/loss")),
        Chart(title="Held-out bits per byte", pattern=r"eval/[^/]+/bits_per_byte(_low|_high)?"),
        Chart(title="Scores", pattern=r"eval/[^/]+/.*(accuracy|acc|exact_match|pass_at_1)"),
        Chart(title="Preference", pattern=r"preference/.*"),
        Chart(title="Loss of multi-token prediction", metrics=_train("later_loss")),
    ),
    "Throughput and time": (
        Chart(title="Tokens/s per device", metrics=_train("tokens_per_second_per_device")),
        Chart(title="MFU and HFU", metrics=_train("mfu", "hfu")),
        Chart(title="Seconds of a step", metrics=_train("seconds", "data_seconds", "waited_seconds", "other_seconds")),
        Chart(title="Pipeline bubble", metrics=_train("bubble")),
        Chart(title="Seconds outside steps, summed up", pattern=r"time/.*_seconds"),
        Chart(title="Checkpoints", metrics=("checkpoint/seconds", "checkpoint/stall_seconds")),
    ),
    "Gradients and layers": (
        Chart(title="Gradient norm", metrics=_train("grad_norm", "clipped_grad_norm"), is_log=True),
        Chart(title="Learning rate", metrics=_train("lr")),
        Chart(title="Update over weight, by layer", pattern=r"layers/.*/update_ratio", is_log=True),
        Chart(title="Gradient norm, by layer", pattern=r"layers/.*/grad_norm", is_log=True),
        Chart(title="Weight norm, by layer", pattern=r"layers/.*/weight_norm"),
    ),
    "Experts": (
        Chart(
            title="Busiest expert and rank, over the mean", metrics=("experts/worst_load", "experts/worst_rank_load")
        ),
        Chart(title="Experts without a token", metrics=("experts/dead",)),
        Chart(title="Entropy of routers", metrics=("experts/entropy", "experts/entropy_of_even")),
        Chart(title="Auxiliary losses", metrics=("experts/balance_loss", "experts/z_loss")),
        Chart(title="Largest load, by block", pattern=r"experts/block_\d+/largest_load"),
        Chart(title="Spread of loads, by block", pattern=r"experts/block_\d+/load_deviation"),
    ),
    "Memory": (
        Chart(title="Of the rank that has the most", metrics=("memory/host_bytes", "memory/device_bytes")),
        Chart(title="What rank 0 holds", pattern=r"memory/held_.*_bytes"),
    ),
    "Events and incidents": (
        Chart(title="Incidents so far", pattern=r"counts/incidents(/.*)?"),
        Chart(title="Starts, and steps done again", metrics=("counts/starts", "counts/redone_steps")),
        Chart(title="Skipped steps so far", metrics=("counts/skipped_steps",)),
        Chart(title="Gates", metrics=("gate/promoted", "counts/gates_not_passed")),
        Chart(title="Checkpoints so far", metrics=("counts/checkpoints",)),
    ),
}


def workspace(entity: str, project: str, *, replaces: str | None = None) -> "Workspace":
    """Return the dashboard, saved nowhere yet.

    Args:
        entity: team or user.
        project: its project.
        replaces: address of a saved view, which saving will change; the server is asked for it.

    Raises:
        ConfigError: wandb-workspaces is not installed.
        ValueError: there is no such view.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2 import LinePlot
    except ModuleNotFoundError as error:
        reason, remedy = f"{error.name} is not installed", "pip install wandb-workspaces==0.4.13"
        raise ConfigError("dashboard", f"{entity}/{project}", reason, remedy) from error
    view = workspaces.Workspace.from_url(replaces) if replaces else workspaces.Workspace(entity, project)
    view.name = NAME
    view.sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[
                LinePlot(
                    title=chart.title,
                    x=chart.over,
                    y=list(chart.metrics),
                    metric_regex=chart.pattern,
                    log_y=chart.is_log or None,
                )
                for chart in charts
            ],
        )
        for name, charts in SECTIONS.items()
    ]
    return view


def plain(view: "Workspace") -> dict[str, Any]:
    """Return what saving would send, without the random names that each panel and section gets."""
    model = view._to_model()  # there is no public way to see it

    def without_names(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_names(child) for key, child in value.items() if key not in ("__id__", "id", "ref")}
        return [without_names(child) for child in value] if isinstance(value, list) else value

    return without_names(json.loads(model.model_dump_json(by_alias=True, exclude_none=True)))


def missing(names: Sequence[str]) -> list[str]:
    """Return the metrics and patterns of the dashboard that none of these names is."""
    charts = [chart for charts in SECTIONS.values() for chart in charts]
    metrics = [metric for chart in charts for metric in chart.metrics if metric not in names]
    patterns = [chart.pattern for chart in charts if chart.pattern]
    return metrics + [p for p in patterns if not any(re.fullmatch(p, name) for name in names)]


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.reporting.dashboard", description=NAME)
    parser.add_argument("--entity", required=True, help="team or user")
    parser.add_argument("--project", required=True, help="its project, as reporting.wandb.project")
    parser.add_argument("--replace", metavar="URL", help="a saved view that is to become this one")
    parser.add_argument("--print", action="store_true", dest="only_print", help="show it and ask no server")
    arguments = parser.parse_args()
    try:
        view = workspace(arguments.entity, arguments.project, replaces=arguments.replace)
        if arguments.only_print:
            sys.stdout.write(f"{json.dumps(plain(view), indent=2)}\n")
        else:
            view.save()
            sys.stdout.write(f"{view.url}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

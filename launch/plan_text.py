"""A plan as text for a terminal."""

from collections.abc import Sequence

from training.planner.efficiency import architecture_of
from training.planner.goodput_plan import GoodputPlan
from training.planner.goodput_simulation import Spread
from training.planner.job import NumberFormat
from training.planner.layouts import describe
from training.planner.price import RunPrice
from training.planner.run_plan import RunPlan, Served, StagePlan
from training.planner.search import Candidate, SearchResult
from training.reporting.formatting import count, duration, num_bytes

_GIB = 2**30
_MOST_PIPELINE_STAGES = 8
"""Rows of the memory table; of more pipeline stages the first, the last and the fullest are shown."""
_MEMORY_PARTS = (
    *("weights", "gradients", "optimizer", "gathered", "activations", "block", "logits"),
    *("buffers", "update", "overhead"),
)


def plan_text(plan: RunPlan) -> str:
    """Return the plan of a run."""
    active = (
        "" if plan.num_active_parameters == plan.num_parameters else f", {_large(plan.num_active_parameters)} active"
    )
    lines = [
        f"{plan.name}: {_large(plan.num_parameters)} parameters{active}, on {plan.num_nodes:,} x "
        f"{plan.devices_per_node} {plan.device}"
    ]
    for stage in plan.stages:
        lines += ["", *_stage_lines(stage)]
    if plan.goodput is not None:
        lines += ["", *_goodput_lines(plan, plan.goodput)]
    if plan.served is not None:
        lines += _served_lines(plan.served)
    lines += ["", *_caveats(plan)]
    return "\n".join(lines)


def search_text(result: SearchResult, *, most: int, seconds: float) -> str:
    """Return the best layouts, the trade-offs between speed, memory and price, and why the others were refused."""
    lines = [f"{result.num_layouts:,} layouts in {seconds:.1f} s, {len(result.ranked):,} of them fit", ""]
    best = result.best(most)
    lines += table(_CANDIDATE_HEAD, [_candidate_row(rank, c) for rank, c in enumerate(best, start=1)])
    front = [candidate for candidate in result.pareto() if candidate not in best]
    if front:
        lines += ["", "Also on the front of speed, memory and price (no other layout is better in all three):"]
        lines += table(_CANDIDATE_HEAD, [_candidate_row(None, candidate) for candidate in front[:most]])
    lines += ["", "Refused:"]
    for reason, number, example in result.refused:
        lines.append(f"  {number:>6,}  {reason}; such as {example}")
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table with aligned columns: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    numeric = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        return "  " + "  ".join(aligned).rstrip()

    return [line(head), *map(line, rows)]


_CANDIDATE_HEAD = ("", "step", "tokens/s", "MFU", "memory", "devices", "layout", "")


def _candidate_row(rank: int | None, candidate: Candidate) -> list[str]:
    return [
        "" if rank is None else str(rank),
        f"{candidate.time.seconds:.3g} s",
        count(candidate.tokens_per_second),
        f"{100 * candidate.mfu:.1f} %",
        f"{candidate.verdict.needed_bytes / _GIB:.0f} GiB",
        f"{candidate.job.split.world_size:,}",
        describe(candidate.job.split, candidate.job.batch),
        "" if candidate.runs_today else "planned only",
    ]


def _stage_lines(stage: StagePlan) -> list[str]:
    time, passes = stage.time, stage.time.passes
    lines = [f"{stage.training_stage}: {stage.layout}"]
    if not stage.runs_today:
        lines.append("  planned only: no engine of this version runs it yet")
    if stage.regather:
        lines.append(f"  weights gathered {stage.regather}")
    lines += [f"  memory   {stage.verdict.reason}", *_memory_table(stage)]
    parts = {
        "matrix products": passes.gemm,
        "attention": passes.attention,
        "memory-bound": passes.memory,
        "tensor exchange": passes.tensor,
        "sequence exchange": passes.context,
        "expert exchange": passes.expert,
        "replicas' exchange": passes.data + time.data_seconds,
        "pipeline transfers": passes.pipeline,
        "host": passes.host,
        "bubble": time.bubble_seconds,
        "update": time.optimizer_seconds,
        "other": time.other_seconds,
    }
    spent = ", ".join(
        f"{name} {100 * s / time.seconds:.1f} %" for name, s in parts.items() if s / time.seconds >= 0.0005
    )
    lines.append(f"  step     {time.seconds:.3g} s: {spent}")
    lines.append(
        f"  speed    {count(stage.tokens_per_second)} tokens/s, "
        f"{stage.tokens_per_second / stage.job.split.world_size:,.0f} a device; MFU {100 * stage.mfu:.1f} % "
        f"(causal attention; {100 * stage.mfu_full_attention:.1f} % with full), HFU {100 * stage.hfu:.1f} %"
    )
    sent = stage.traffic
    axes = {
        "tensor": sent.tensor_bytes,
        "sequence": sent.context_bytes,
        "expert": sent.expert_bytes,
        "replicas": sent.data_bytes,
        "pipeline": sent.pipeline_bytes,
    }
    traffic = ", ".join(f"{name} {num_bytes(sent)}" for name, sent in axes.items() if sent)
    lines.append(f"  traffic  a rank sends in a step: {traffic or 'nothing'}")
    lines.append(
        f"  length   {count(stage.tokens)} tokens in {stage.num_steps:,} steps, "
        f"{duration(86_400 * stage.undisturbed_days)} if nothing fails"
    )
    if stage.batch_ramp:
        ramp = ", ".join(f"{steps:,} steps of {sequences:,} sequences" for steps, sequences in stage.batch_ramp)
        lines.append(
            f"  ramp     {ramp}: they are in the length; memory, step, speed and traffic are of the full batch"
        )
    return lines


def _memory_table(stage: StagePlan) -> list[str]:
    shown = range(len(stage.memory))
    if len(shown) > _MOST_PIPELINE_STAGES:
        shown = sorted({0, 1, stage.verdict.pipeline_stage, len(stage.memory) // 2, len(stage.memory) - 1})
    parts = [
        part
        for part in _MEMORY_PARTS
        if any(getattr(stage.memory[place], f"{part}_bytes") >= 0.05 * _GIB for place in shown)
    ]
    rows = [
        [
            str(place),
            *(f"{getattr(stage.memory[place], f'{part}_bytes') / _GIB:.1f}" for part in parts),
            f"{stage.memory[place].total_bytes / _GIB:.1f}",
        ]
        for place in shown
    ]
    lines = table(["pipeline stage, GiB of a rank", *parts, "at the highest"], rows)
    return [f"         {line}" for line in lines]


def _goodput_lines(plan: RunPlan, goodput: GoodputPlan) -> list[str]:
    interruptions, spent = goodput.interruptions, goodput.days_spent
    recovery = interruptions.detection_seconds + interruptions.restart_seconds + interruptions.reload_seconds
    lost = ", ".join(
        f"{entry.replace('_', ' ')} {days:.2g} d"
        for entry, days in spent.items()
        if entry != "compute" and days >= 0.005
    )
    assumed = " (assumed: give cluster.storage.write_bytes_per_second)" if plan.storage_is_assumed else ""
    lines = [
        "run, with failures (1,000 simulated runs; the range is from 5 to 95 %)",
        f"  finish   in {_days(goodput.days)}; {100 * goodput.ettr.mean:.1f} % of the time trains; "
        f"lost: {lost or 'nothing'}",
        f"  failures one in {interruptions.mtbf_seconds / 3600:.3g} h, "
        f"{_range(goodput.num_failures, '{:,.0f}')} in all; {recovery:.0f} s from a failure to the next step",
        f"  saves    each stalls {goodput.checkpoint.stall_seconds:.2g} s and is written in "
        f"{goodput.checkpoint.write_seconds:.0f} s at {num_bytes(plan.storage.write_bytes_per_second)}/s{assumed}; "
        f"checkpoint.every_steps={goodput.best_every_steps} would be best "
        f"({100 * goodput.best_expected_ettr:.1f} % trains instead of {100 * goodput.expected_ettr:.1f} %)",
        f"  spares   {interruptions.spare_nodes} booked (cluster.reliability.spare_nodes); "
        f"{goodput.advised_spare_nodes} are enough in 99 % of the time",
        f"  devices  {_range(goodput.price.device_hours, '{:,.0f}')} hours",
    ]
    return [*lines, *_price_lines(goodput.price)]


def _price_lines(price: RunPrice) -> list[str]:
    lines = []
    if price.energy_megawatt_hours is not None:
        lines.append(f"  energy   {_range(price.energy_megawatt_hours, '{:,.0f}')} MWh, hosts and cooling included")
    if price.total is None or price.per_million_tokens is None:
        lines.append("  price    not known: give cluster.accelerator.price_per_hour")
    else:
        lines.append(
            f"  price    {_range(price.total, '{:,.0f}')}, "
            f"{_range(price.per_million_tokens, '{:.3g}')} for a million tokens"
        )
    return lines


def _served_lines(served: Served) -> list[str]:
    serving, price = served.serving, served.price
    return [
        f"  served   on {serving.num_devices} devices, {serving.batch_sequences} sequences of "
        f"{serving.context_tokens:,} tokens, by the roofline: for a million tokens "
        f"{price.price_per_million_prompt_tokens:.3g} read and {price.price_per_million_output_tokens:.3g} written "
        f"({price.output_tokens_per_second:,.0f} tokens/s, bound by {price.output_bound})"
    ]


def _caveats(plan: RunPlan) -> list[str]:
    lines = [
        "How far plans of published runs are off: docs/planner_validation.md, docs/planner_goodput.md. No GPU run of "
        "ours has been compared.",
    ]
    if plan.num_prediction_blocks:
        lines.append(
            f"Planned without the blocks of multi-token prediction ({plan.num_prediction_blocks}): each costs as much "
            "as another block and another pass of the output projection, on the last pipeline stage."
        )
    if plan.is_muon:
        lines.append(
            "Planned as if AdamW updated everything: of hidden matrices Muon keeps 4 bytes a parameter less, and its "
            "own products and exchanges in the update are not counted (docs/adr/0015)."
        )
    device = plan.stages[0].job.device
    if NumberFormat.bf16 in device.peak_flops and architecture_of(device) is None:
        lines.append(
            f"Nothing is known of how much of its peak {device.name} reaches: it is taken for the median of known "
            "accelerators."
        )
    if plan.goodput is not None:
        lines.append("What the devices, links and failures are taken to be: cluster.* (launch.check --cfg job).")
    return lines


def _large(number: float) -> str:
    if number >= 1e12:
        return f"{number / 1e12:.2f} trillion"
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _days(days: Spread) -> str:
    return f"{_range(days, '{:.3g}')} days"


def _range(spread: Spread, form: str) -> str:
    low, middle, high = (form.format(value) for value in (spread.p5, spread.mean, spread.p95))
    return middle if low == high else f"{middle} ({low} to {high})"

"""The page of results: Markdown, with the machine, the command, medians and ranges."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.checkpoint_contest import CheckpointContest
from benchmarks.checkpoint_report import checkpoints
from benchmarks.data_contest import DataContest, data
from benchmarks.evaluation_contest import EvaluationContest, evaluation
from benchmarks.layer_contest import LayerContest, layers
from benchmarks.logging_contest import LoggingContest, logging
from benchmarks.plan_contest import PlanContest, plans
from benchmarks.preference_contest import PreferenceContest, preferences
from benchmarks.tables import spread, table
from benchmarks.throughput import SAME_LOSS, Contest
from training.parallel.schedule import make_schedule
from training.parallel.simulate import unit_time


@dataclass(frozen=True, kw_only=True, slots=True)
class Starts:
    """Seconds of repeated starts and checks."""

    submit_seconds: list[float]
    trainer_seconds: list[float]
    submit_phases: list[dict[str, float]]
    check_seconds: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything one run of the command measured; None for what it left out."""

    machine: str
    num_cores: int
    command: str
    date: str
    engines: Contest | None
    pipelines: Contest | None
    checkpoints: CheckpointContest | None
    evaluation: EvaluationContest | None
    plans: PlanContest | None
    layers: LayerContest | None
    data: DataContest | None
    preference: PreferenceContest | None
    logging: LoggingContest | None
    starts: Starts | None


def page(results: Results) -> str:
    """Return the whole page."""
    sections = [_throughput(results.engines)] if results.engines else []
    sections += [_pipelines(results.pipelines, results.num_cores)] if results.pipelines else []
    sections += [checkpoints(results.checkpoints)] if results.checkpoints else []
    sections += [evaluation(results.evaluation)] if results.evaluation else []
    sections += [plans(results.plans)] if results.plans else []
    sections += [layers(results.layers)] if results.layers else []
    sections += [data(results.data)] if results.data else []
    sections += [preferences(results.preference)] if results.preference else []
    sections += [logging(results.logging)] if results.logging else []
    sections += [_start_up(results.starts), _check(results.starts.check_seconds)] if results.starts else []
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"`{results.command}` on {results.date}, one run, everything side by side.",
            "",
            f"Machine: {results.machine}.",
            "",
            "Every number is the median of its repeats, the range from the smallest to the largest in parentheses.",
            "",
            *(line for section in sections for line in (*section, "")),
        ]
    )


def _throughput(contest: Contest) -> list[str]:
    rows = [
        [
            title,
            spread(contest.tokens_per_second(title), ",.0f"),
            spread(contest.ratios(title), ".2f"),
            spread(contest.cpu_seconds_per_step(title), ".2f"),
            spread([100 * share for share in contest.mfu(title)], ".1f"),
            f"{contest.largest_loss_difference(title):.1e}",
        ]
        for title in contest.rounds
    ]
    heads = ["", "tokens/s", f"{contest.first} ÷ it", "CPU s per step", "MFU %", "loss difference"]
    matmul = [turn.matmul_flops_per_second / 1e9 for turn in contest.all_turns()]
    return [
        "## Training",
        "",
        f"The demo's model, data and batches: {contest.tokens_per_step:,} tokens per optimizer step, fp32, 2 gloo "
        "processes of one thread each, AdamW, gradients clipped, nothing recomputed, nothing logged. All start from "
        "the same weights and read the same sequences in the same order.",
        "",
        *table(heads, rows),
        "",
        _rounds(contest),
        "- CPU s per step: processor time of both ranks. Other work on the machine hardly moves it.",
        f"- MFU = {contest.flops_per_token:,.0f} FLOPs per token × tokens/s ÷ the rate of 1024 × 1024 fp32 matrix "
        "products that both ranks measure together just before and after the same turn "
        f"(here {spread(matmul, ',.0f')} GFLOP/s). A multiply-add is 2 FLOPs, backward costs twice the forward, "
        "attention is causal, the embedding look-up is free (training/models/sizes.py).",
        _same_losses(contest),
    ]


def _pipelines(contest: Contest, num_cores: int) -> list[str]:
    rows = [
        [
            title,
            spread([1000 * seconds for seconds in contest.step_seconds(title)], ",.0f"),
            spread(contest.ratios(title), ".2f"),
            spread(contest.cpu_seconds_per_step(title), ".2f"),
            spread(contest.cpu_ratios(title), ".2f"),
            spread([100 * bubble for bubble in contest.bubbles(title)], ".0f") if contest.bubbles(title) else "-",
            f"{contest.largest_loss_difference(title):.1e}",
        ]
        for title in contest.rounds
    ]
    heads = ["", "ms per step", "it ÷ ours", "CPU s per step", "CPU, ours ÷ it", "bubble %", "loss difference"]
    layout = contest.config.layout_of(contest.training_stage)
    num_micro_batches = contest.config.accumulation_steps(contest.training_stage)
    schedule = make_schedule(
        layout.schedule,
        num_pipeline_stages=layout.pipeline,
        chunks_per_rank=layout.chunks_per_rank,
        num_micro_batches=num_micro_batches,
    )
    num_replicas = contest.num_ranks // layout.pipeline
    return [
        "## Pipelines over sharded replicas",
        "",
        f"The demo's model in {layout.pipeline} pipeline stages × {num_replicas} replicas: {contest.num_ranks} gloo "
        f"processes of one thread each, which share this machine's {num_cores} cores. {contest.tokens_per_step:,} "
        f"tokens per optimizer step in {num_micro_batches} micro-batches per pipeline, {schedule.name}, fp32, AdamW, "
        "gradients clipped, nothing recomputed, the same cut, weights and sequences. "
        f'"Ours" is {contest.first}.',
        "",
        *table(heads, rows),
        "",
        _rounds(contest),
        "- it ÷ ours: wall time per step, above 1 ours is faster. CPU s per step: processor time of all ranks; with "
        "more processes than cores it says more than wall time. CPU, ours ÷ it: below 1 ours needs less.",
        "- torch: fully_shard for each layer with reshard_after_forward=False, torch.distributed.pipelining with "
        "Schedule1F1B, fused AdamW (benchmarks/fsdp2_pipeline.py). Like ZeRO-1 it reduces gradients once per step "
        "and keeps them whole until then; ZeRO-3 reduces after every micro-batch and keeps a shard.",
        f"- Bubble: share of the forwards' and backwards' time in which a rank computed nothing, mean over ranks. "
        f"Predicted {100 * unit_time(schedule).bubble:.0f} % for equal chunks, free transfers and a core for each rank "
        "(training/parallel/simulate.py). Sharing cores counts as computing, waiting inside a collective too.",
        _same_losses(contest),
    ]


def _rounds(contest: Contest) -> str:
    turns = contest.rounds[contest.first]
    return (
        f"- {len(turns)} rounds; in each, every contestant trains {len(turns[0].losses)} steps while the others wait. "
        "Ratios are taken within a round. Warm-up steps are not counted."
    )


def _same_losses(contest: Contest) -> str:
    others = contest.that_train_something_else()
    verdict = f"NOT the same training: {', '.join(others)}" if others else "all train the same thing"
    return (
        f"- Loss difference: largest relative difference from {contest.first} over the "
        f"{len(contest.warm_ups[contest.first].losses)} warm-up steps. At most {SAME_LOSS:.0e} is the same: {verdict}."
    )


def _start_up(starts: Starts) -> list[str]:
    ratio = statistics.median(starts.submit_seconds) / statistics.median(starts.trainer_seconds)
    totals = [
        ["python -m launch.submit experiment=smoke", spread(starts.submit_seconds, ".1f")],
        ["HF Trainer, DeepSpeed ZeRO-3, same model and data", spread(starts.trainer_seconds, ".1f")],
    ]
    phases = [[name, spread(seconds, ".2f")] for name, seconds in _by_phase(starts.submit_phases).items()]
    whole = [sum(start.values()) for start in starts.submit_phases]
    return [
        "## Start-up",
        "",
        "Seconds from the command to the first optimizer step, 2 processes, the same launcher, prepared data.",
        "",
        *table(["", "seconds"], totals),
        "",
        f"Ratio {ratio:.2f}. `launch.submit` also checks the config, freezes it and evaluates the untrained model; the "
        "Trainer does none of that. Where its time goes, on rank 0, from starts of their own:",
        "",
        *table(["phase", "seconds"], [*phases, ["all", spread(whole, ".2f")]]),
    ]


def _check(seconds: Sequence[float]) -> list[str]:
    return [
        "## Checking a config",
        "",
        f"`python -m launch.check experiment=demo`: {spread(seconds, '.2f')} seconds, {len(seconds)} repeats "
        "(goal: less than 2).",
    ]


def _by_phase(starts: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [start[name] for start in starts] for name in starts[0]}

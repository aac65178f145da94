"""The page of results: Markdown, with the machine, the command, medians and ranges."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.throughput import FIRST, Contest


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything one run of the command measured."""

    machine: str
    command: str
    date: str
    contest: Contest
    submit_seconds: list[float]
    trainer_seconds: list[float]
    submit_phases: list[dict[str, float]]
    check_seconds: list[float]


def page(results: Results) -> str:
    """Return the whole page."""
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
            *_throughput(results.contest),
            "",
            *_start_up(results),
            "",
            *_check(results.check_seconds),
            "",
        ]
    )


def _throughput(contest: Contest) -> list[str]:
    turns = contest.rounds[FIRST]
    rows = [
        [
            title,
            _spread(contest.tokens_per_second(title), ",.0f"),
            _spread(contest.ratios(title), ".2f"),
            _spread(contest.cpu_seconds_per_step(title), ".2f"),
            _spread([100 * share for share in contest.mfu(title)], ".1f"),
            f"{contest.largest_loss_difference(title):.1e}",
        ]
        for title in contest.rounds
    ]
    heads = ["", "tokens/s", f"{FIRST} ÷ it", "CPU s per step", "MFU %", "loss difference"]
    matmul = [turn.matmul_flops_per_second / 1e9 for turn in contest.all_turns()]
    return [
        "## Training",
        "",
        f"The demo's model, data and batches: {contest.tokens_per_step:,} tokens per optimizer step, fp32, 2 gloo "
        "processes of one thread each, AdamW, gradients clipped, nothing recomputed, nothing logged. All start from "
        "the same weights and read the same sequences in the same order.",
        "",
        *_table(heads, rows),
        "",
        f"- {len(turns)} rounds; in each, every contestant trains {len(turns[0].losses)} steps while the others wait. "
        "Ratios are taken within a round. Warm-up steps are not counted.",
        "- CPU s per step: processor time of both ranks. Other work on the machine hardly moves it.",
        f"- MFU = {contest.flops_per_token:,.0f} FLOPs per token × tokens/s ÷ the rate of 1024 × 1024 fp32 matrix "
        "products that both ranks measure together just before and after the same turn "
        f"(here {_spread(matmul, ',.0f')} GFLOP/s). A multiply-add is 2 FLOPs, backward costs twice the forward, "
        "attention is causal, the embedding look-up is free (training/models/sizes.py).",
        f"- Loss difference: largest relative difference from {FIRST} over the {len(contest.warm_ups[FIRST].losses)} "
        "warm-up steps; small means that all train the same thing.",
    ]


def _start_up(results: Results) -> list[str]:
    ratio = statistics.median(results.submit_seconds) / statistics.median(results.trainer_seconds)
    totals = [
        ["python -m launch.submit experiment=smoke", _spread(results.submit_seconds, ".1f")],
        ["HF Trainer, DeepSpeed ZeRO-3, same model and data", _spread(results.trainer_seconds, ".1f")],
    ]
    phases = [[name, _spread(seconds, ".2f")] for name, seconds in _by_phase(results.submit_phases).items()]
    whole = [sum(start.values()) for start in results.submit_phases]
    return [
        "## Start-up",
        "",
        "Seconds from the command to the first optimizer step, 2 processes, the same launcher, prepared data.",
        "",
        *_table(["", "seconds"], totals),
        "",
        f"Ratio {ratio:.2f}. `launch.submit` also checks the config, freezes it and evaluates the untrained model; the "
        "Trainer does none of that. Where its time goes, on rank 0, from starts of their own:",
        "",
        *_table(["phase", "seconds"], [*phases, ["all", _spread(whole, ".2f")]]),
    ]


def _check(seconds: Sequence[float]) -> list[str]:
    return [
        "## Checking a config",
        "",
        f"`python -m launch.check experiment=demo`: {_spread(seconds, '.2f')} seconds, {len(seconds)} repeats "
        "(goal: less than 2).",
    ]


def _by_phase(starts: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [start[name] for start in starts] for name in starts[0]}


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns line up as plain text too."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]

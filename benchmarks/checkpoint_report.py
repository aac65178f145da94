"""The page's section about checkpoints."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.checkpoint_contest import (
    BYTES_PER_PARAMETER,
    DEEPSPEED,
    NUM_RANKS,
    NUM_RANKS_AFTER,
    OURS,
    CheckpointContest,
    Resumption,
    Save,
)
from benchmarks.checkpoint_rank import CHECKED_STEPS, FEWEST_STEPS_AFTER, UNDISTURBED_STEPS
from benchmarks.tables import spread, table
from benchmarks.throughput import SAME_LOSS
from training.models.sizes import num_parameters

_LARGEST_STALL_RATIO = 0.05
"""Goal: ours over DeepSpeed's."""
_SMALLEST_RESHARD_RATIO = 5.0
"""Goal: the universal route's seconds over ours."""


def checkpoints(contest: CheckpointContest) -> list[str]:
    """Return the section."""
    parameters = num_parameters(contest.model)
    num_rounds = len(contest.saves[OURS])
    rate = spread([save.disk_rate / 1e9 for saves in contest.saves.values() for save in saves], ".2f")
    return [
        "## Checkpoints",
        "",
        f"A Llama-shaped model of {parameters / 1e6:,.0f}M parameters, fp32, AdamW, sharded over {NUM_RANKS} gloo "
        f"processes (ZeRO-3; for torch FSDP2), {contest.tokens_per_step} tokens per step. {num_rounds} "
        f"{'rounds' if num_rounds > 1 else 'round'}; in each, every contestant runs alone, in new processes. A "
        f"checkpoint is {BYTES_PER_PARAMETER} bytes per parameter: fp32 weights and both moments. The disk alone: "
        f"{NUM_RANKS} processes that write as many bytes at once and fsync reach {rate} GB/s.",
        "",
        "### Saving while training",
        "",
        *_saving(contest),
        "",
        "### Writing",
        "",
        *_writing(contest),
        "",
        "### Going on",
        "",
        *_going_on(contest),
        "",
        "### Goals",
        "",
        *_goals(contest),
    ]


def _saving(contest: CheckpointContest) -> list[str]:
    rows = [
        [
            title,
            _seconds(saves, lambda save: save.first_stall, ".3f"),
            _seconds(saves, lambda save: save.stall, ".3f"),
            spread(_stall_ratios(contest, title), ".1f"),
            _seconds(saves, lambda save: save.extra_seconds),
            _seconds(saves, lambda save: save.seconds_until_written),
            spread([seconds for save in saves for seconds in save.step_seconds], ".2f"),
        ]
        for title, saves in contest.saves.items()
    ]
    heads = ["", "first stall s", "stall s", "it ÷ ours", "extra s", "until written s", "undisturbed step s"]
    watched = [save.num_steps_after for saves in contest.saves.values() for save in saves]
    return [
        *table(heads, rows),
        "",
        "- Stall: training stands still, slowest rank: until the call returns, and while a later update waits (ours "
        "copies the state beside the next step's forwards; what that costs is among the extra seconds). The first one "
        "of a process also makes what later ones use again, memory or a writing process; later ones are what a run "
        "sees. Ratios are taken within a round, of later stalls.",
        f"- Extra: everything the save costs training: from its start to the end of the steps watched after it, less "
        f"as many undisturbed steps (median of {UNDISTURBED_STEPS}). Watched until the contestant has written "
        f"everything, {FEWEST_STEPS_AFTER} steps at least (here {min(watched)}–{max(watched)}), so that a slow-down "
        "by what still happens in the background is in it.",
        "- Until written: from the start of the save until the contestant says it is done, seen at the end of a step.",
    ]


def _writing(contest: CheckpointContest) -> list[str]:
    rows = []
    for title, saves in contest.saves.items():
        itself = [save.num_bytes / save.quiet_write_seconds for save in saves]
        durable = [save.num_bytes / save.quiet_durable_seconds for save in saves]
        rows.append(
            [
                title,
                f"{statistics.median(save.num_bytes for save in saves) / 1e9:.2f}",
                spread([rate / 1e9 for rate in itself], ".2f"),
                _shares(itself, saves),
                spread([rate / 1e9 for rate in durable], ".2f"),
                _shares(durable, saves),
            ]
        )
    heads = ["", "GB", "as it saves, GB/s", "% of the disk", "until on disk, GB/s", "% of the disk"]
    return [
        *table(heads, rows),
        "",
        "- The second save of each process, nothing else running, from the call to its end; copying, hashing "
        "and committing included. Until on disk: the same, then fsync of every file. The disk's rate: just before.",
        "- DeepSpeed 0.19.8 never calls fsync (runtime/checkpoint_engine/torch_checkpoint_engine.py): what it calls "
        "saved may be in memory only. DCP does, file by file (torch 2.13, FileSystemWriter, sync_files=True). Ours "
        "does, and hashes every file and tensor besides; before it loads, it checks them, which is in its times below.",
    ]


def _going_on(contest: CheckpointContest) -> list[str]:
    same = f"{NUM_RANKS} ranks"
    other = f"{NUM_RANKS} → {NUM_RANKS_AFTER} rank"
    rows = []
    for layout, by_title in ((same, contest.resumptions), (other, contest.reshardings)):
        for title, attempts in by_title.items():
            rows.append(
                [
                    layout,
                    title,
                    spread([attempt.total_seconds for attempt in attempts], ".1f"),
                    spread(
                        [
                            attempt.total_seconds / ours.total_seconds
                            for attempt, ours in zip(attempts, by_title[OURS], strict=True)
                        ],
                        ".2f",
                    ),
                    spread([attempt.convert_seconds for attempt in attempts], ".1f"),
                    spread([attempt.start_seconds for attempt in attempts], ".1f"),
                    spread([attempt.load_seconds for attempt in attempts], ".1f"),
                    spread([attempt.step_seconds for attempt in attempts], ".1f"),
                    f"{max(attempt.loss_difference for attempt in attempts):.1e}",
                ]
            )
    heads = ["layout", "", "total s", "it ÷ ours", "convert s", "start s", "load s", "first step s", "loss difference"]
    strange = [
        f"{title} ({layout})"
        for layout, by_title in ((same, contest.resumptions), (other, contest.reshardings))
        for title, attempts in by_title.items()
        if max(attempt.loss_difference for attempt in attempts) > SAME_LOSS
    ]
    verdict = f"NOT restored: {', '.join(strange)}" if strange else "all went on with what was saved"
    return [
        *table(heads, rows),
        "",
        "- Total: from the saved checkpoint, dropped from the page cache, to the end of the first step: converter, "
        "start of the process until its engine is built, load, step.",
        f"- {DEEPSPEED} changes its layout by python -m deepspeed.checkpoint.ds_to_universal with {NUM_RANKS} workers "
        "and load_universal. Two defects of that load under ZeRO-3 are mended in benchmarks/checkpoint_deepspeed.py: "
        "it would go on with wrong counts of steps and weight decays.",
        f"- Loss difference: largest relative one from the run that was not interrupted, over the "
        f"{CHECKED_STEPS} steps after the save. At most {SAME_LOSS:.0e} is the same: {verdict}.",
    ]


def _goals(contest: CheckpointContest) -> list[str]:
    stalls = [1 / ratio for ratio in _stall_ratios(contest, DEEPSPEED)]
    totals = _paired(contest, lambda attempt: attempt.total_seconds)
    work = _paired(contest, lambda attempt: attempt.convert_seconds + attempt.load_seconds)
    is_short = statistics.median(stalls) <= _LARGEST_STALL_RATIO
    is_fast = statistics.median(work) >= _SMALLEST_RESHARD_RATIO
    return [
        f"- Stall at most {100 * _LARGEST_STALL_RATIO:.0f} % of DeepSpeed's: {_verdict(is_short)}, "
        f"{spread([100 * stall for stall in stalls], '.1f')} %.",
        f"- Change of layout (converter and load) at least {_SMALLEST_RESHARD_RATIO:.0f} times as fast as DeepSpeed's "
        f"universal route: {_verdict(is_fast)}, {spread(work, '.1f')} times. From the checkpoint to the first step, "
        f"with the start and the step that both need alike: {spread(totals, '.1f')} times.",
    ]


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def _stall_ratios(contest: CheckpointContest, title: str) -> list[float]:
    pairs = zip(contest.saves[title], contest.saves[OURS], strict=True)
    return [it.stall / ours.stall for it, ours in pairs]


def _paired(contest: CheckpointContest, seconds: Callable[[Resumption], float]) -> list[float]:
    """Return, round by round, DeepSpeed's seconds of a change of layout over ours."""
    pairs = zip(contest.reshardings[DEEPSPEED], contest.reshardings[OURS], strict=True)
    return [seconds(theirs) / seconds(ours) for theirs, ours in pairs]


def _seconds(saves: Sequence[Save], seconds: Callable[[Save], float], digits: str = ".2f") -> str:
    return spread([seconds(save) for save in saves], digits)


def _shares(rates: Sequence[float], saves: Sequence[Save]) -> str:
    return spread([100 * rate / save.disk_rate for rate, save in zip(rates, saves, strict=True)], ".0f")

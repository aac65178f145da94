"""Mistakes in what ranks hold, read and write: parameters, samples, checkpoints, memory. No torch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.rehearsal.mistake import Mistake
from training.rehearsal.ownership import STATE_KINDS, WEIGHT, Slices
from training.rehearsal.rehearsal import Rehearsal


def _middle_row(slices: Slices) -> int | None:
    """Return a row near the middle whose parameter has an earlier row too; None if no parameter is divided."""
    same = np.flatnonzero(slices.parameter[1:] == slices.parameter[:-1]) + 1
    return int(same[len(same) // 2]) if len(same) else None


def _with_state(rehearsal: Rehearsal, row: int, slices: Slices, kinds: tuple[str, ...] = STATE_KINDS) -> Mistake:
    before = rehearsal.state[WEIGHT]
    state = {kind: slices if kind in kinds else other for kind, other in rehearsal.state.items()}
    name = rehearsal.ownership.names[int(before.parameter[row])]
    return Mistake(rehearsal=replace(rehearsal, state=state), rank=int(slices.rank[row]), words=(name,))


def _range_owned_twice(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.state[WEIGHT]
    row = _middle_row(slices)
    if row is None:
        return None
    wrong = slices.with_row(row, start=int(slices.start[row]) - 1, numel=int(slices.numel[row]) + 1)
    return _with_state(rehearsal, row, wrong)


def _range_owned_by_nobody(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.state[WEIGHT]
    row = _middle_row(slices)
    if row is None:
        return None
    wrong = slices.with_row(row, start=int(slices.start[row]) + 1, numel=int(slices.numel[row]) - 1)
    return _with_state(rehearsal, row, wrong)


def _padding_owned(rehearsal: Rehearsal) -> Mistake:
    slices = rehearsal.state[WEIGHT]
    is_last = slices.start + slices.numel == rehearsal.ownership.numels[slices.parameter]
    lasts = np.flatnonzero(is_last & slices.is_owner)
    row = int(lasts[len(lasts) // 3])
    return _with_state(rehearsal, row, slices.with_row(row, numel=int(slices.numel[row]) + 1))


def _moment_of_another_rank(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.state[WEIGHT]
    row = _middle_row(slices)
    if row is None:
        return None
    other = (int(slices.rank[row]) + 1) % rehearsal.plan.grid.world_size
    return _with_state(rehearsal, row, slices.with_row(row, rank=other), kinds=STATE_KINDS[1:2])


def _tied_copy_elsewhere(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.state[WEIGHT]
    copies = np.flatnonzero(~slices.is_owner)
    if not len(copies):
        return None
    row = int(copies[len(copies) // 2])
    numel = int(slices.numel[row])
    return _with_state(
        rehearsal, row, slices.with_row(row, numel=numel - 1) if numel > 1 else slices.with_row(row, rank=0)
    )


def _expert_owned_by_nobody(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.state[WEIGHT]
    routed = [number for number, name in enumerate(rehearsal.ownership.names) if ".experts." in name]
    if not routed:
        return None
    number = routed[len(routed) // 2]
    gone = slices.parameter == number
    state = dict.fromkeys(STATE_KINDS, slices.rows(~gone))
    name = rehearsal.ownership.names[number]
    neighbour = slices.rank[slices.parameter == number - 1]  # held by ranks with the same experts, or those before
    return Mistake(rehearsal=replace(rehearsal, state=state), rank=int(neighbour[0]), words=(name, "nobody"))


def _bias_owned_by_nobody(rehearsal: Rehearsal) -> Mistake | None:
    biases = rehearsal.biases
    if len(biases.names) < 2:
        return None
    number = len(biases.names) // 2
    gone = biases.state.parameter == number
    wrong = replace(rehearsal, biases=replace(biases, state=biases.state.rows(~gone)))
    neighbour = biases.state.rank[biases.state.parameter == number - 1]
    return Mistake(rehearsal=wrong, rank=int(neighbour[0]), words=(biases.names[number], "nobody"))


def _with_samples(rehearsal: Rehearsal, step: int, samples: np.ndarray, rank: int, *words: str) -> Mistake:
    steps = list(rehearsal.samples)
    steps[step] = replace(steps[step], samples=samples)
    return Mistake(rehearsal=replace(rehearsal, samples=tuple(steps)), rank=rank, words=words)


def _places(rehearsal: Rehearsal) -> tuple[np.ndarray, int, int]:
    """Return a copy of the samples of the first step, a replica in the middle, and its rank on the first stage."""
    grid = rehearsal.plan.grid
    replica = grid.data // 2
    return rehearsal.samples[0].samples.copy(), replica, replica * grid.sequence * grid.tensor


def _sample_skipped(rehearsal: Rehearsal) -> Mistake:
    """One replica reads the first sample of the next step in place of one of its own."""
    samples, replica, rank = _places(rehearsal)
    next_one = rehearsal.plan.global_batch
    samples[:, replica, 0, 0] = next_one
    return _with_samples(rehearsal, 0, samples, rank, f"sample {next_one:,}", "does not belong")


def _sample_twice(rehearsal: Rehearsal) -> Mistake | None:
    samples, replica, rank = _places(rehearsal)
    other = samples[0].ravel()[0] if samples[0, replica, 0, 0] != samples[0].ravel()[0] else samples[0].ravel()[-1]
    if other == samples[0, replica, 0, 0]:
        return None
    samples[:, replica, 0, 0] = other
    return _with_samples(rehearsal, 0, samples, rank, f"sample {other:,}", "more than once")


def _replicas_alike(rehearsal: Rehearsal) -> Mistake | None:
    samples, replica, rank = _places(rehearsal)
    if rehearsal.plan.grid.data == 1:
        return None
    samples[:, replica] = samples[:, replica - 1]
    return _with_samples(rehearsal, 0, samples, rank, "more than once")


def _pipeline_reads_other_samples(rehearsal: Rehearsal) -> Mistake | None:
    samples, replica, _ = _places(rehearsal)
    grid = rehearsal.plan.grid
    if grid.pipeline == 1 or grid.data == 1:
        return None
    samples[-1, [replica - 1, replica]] = samples[-1, [replica, replica - 1]]
    rank = ((grid.pipeline - 1) * grid.data + replica) * grid.sequence * grid.tensor
    return _with_samples(rehearsal, 0, samples, rank, "other samples than the first pipeline stage")


def _resume_overlaps(rehearsal: Rehearsal) -> Mistake:
    samples = rehearsal.samples[-1].samples - rehearsal.plan.global_batch // 2
    last = len(rehearsal.samples) - 1
    return _with_samples(rehearsal, last, samples, 0, "after a resume", "does not belong")


def _checkpoint_range_missing(rehearsal: Rehearsal) -> Mistake | None:
    slices = rehearsal.files[WEIGHT]
    row = _middle_row(slices)
    if row is None:
        return None
    rest = slices.rows(np.arange(len(slices)) != row)
    files = {**rehearsal.files, WEIGHT: rest}
    name = rehearsal.ownership.names[int(slices.parameter[row])]
    # The rank that left it out is told by its file, which is longer than its slices; the gap by those around it.
    neighbour = int(slices.rank[row - 1])
    return Mistake(rehearsal=replace(rehearsal, files=files), rank=neighbour, words=(name, "nobody"))


def _checkpoint_file_too_short(rehearsal: Rehearsal) -> Mistake:
    rank = rehearsal.plan.grid.world_size // 2 if rehearsal.plan.layout.zero_stage else 0
    file_bytes = rehearsal.file_bytes.copy()
    file_bytes[rank] -= 4096
    wrong = replace(rehearsal, file_bytes=file_bytes)
    return Mistake(rehearsal=wrong, rank=rank, words=(f"rank-{rank:05d}.safetensors",))


def _device_too_small(rehearsal: Rehearsal) -> Mistake | None:
    if not rehearsal.memory:
        return None
    grid = rehearsal.plan.grid
    rank = grid.world_size * 2 // 3
    device_bytes = rehearsal.device_bytes.copy()
    device_bytes[rank] = rehearsal.memory[grid.pipeline_stage_of(rank)].total_bytes / 2
    return Mistake(rehearsal=replace(rehearsal, device_bytes=device_bytes), rank=rank, words=("planned", "the device"))


STATE_MISTAKES: dict[str, Callable[[Rehearsal], Mistake | None]] = {
    "range_owned_twice": _range_owned_twice,
    "range_owned_by_nobody": _range_owned_by_nobody,
    "padding_owned": _padding_owned,
    "moment_of_another_rank": _moment_of_another_rank,
    "tied_copy_elsewhere": _tied_copy_elsewhere,
    "expert_owned_by_nobody": _expert_owned_by_nobody,
    "bias_owned_by_nobody": _bias_owned_by_nobody,
    "sample_skipped": _sample_skipped,
    "sample_twice": _sample_twice,
    "replicas_alike": _replicas_alike,
    "pipeline_reads_other_samples": _pipeline_reads_other_samples,
    "resume_overlaps": _resume_overlaps,
    "checkpoint_range_missing": _checkpoint_range_missing,
    "checkpoint_file_too_short": _checkpoint_file_too_short,
    "device_too_small": _device_too_small,
}
"""Name -> makes the mistake; None where the layout leaves no room for it."""

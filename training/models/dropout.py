"""Dropout whose masks do not depend on the layout.

The mask of a sample is a pure function of (seed, sample id, place in the model). So it is the same in every pipeline
stage, data replica, ZeRO stage and micro-batch size, in the second forward of activation recompute, and after a kill
and resume: there is no random state to save, and torch's global generators are never used.

It is the same on one kind of device only: torch's generators give other numbers on CPU than on a GPU, and on a GPU
they may depend on its number of multiprocessors (ATen/native/cuda/DistributionTemplates.h, calc_execution_policy).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutKeys:
    """What the masks of one micro-batch follow from, besides the place in the model."""

    seed: int
    """The run's seed."""
    sample_ids: tuple[int, ...]
    """Identity of each sequence within the run, in the order of the batch."""

    def generator_seed(self, sample: int, place: str) -> int:
        """Return the seed of the mask of the batch's n-th sequence at a place; 63 bits, of which CPU uses 32."""
        key = hashlib.sha256(f"{self.seed}/{self.sample_ids[sample]}/{place}".encode()).digest()
        return int.from_bytes(key[:8], "big") >> 1


_current_keys: ContextVar[DropoutKeys | None] = ContextVar("dropout_keys", default=None)


@contextmanager
def dropout_of(sample_ids_B: Tensor | None, seed: int) -> Iterator[None]:
    """Give the forward of a micro-batch the keys of its masks. Backward, also with recompute, may run outside.

    Args:
        sample_ids_B: int64 on CPU, one per sequence; None leaves the forward without keys, as in evaluation.
        seed: the run's seed.
    """
    keys = None if sample_ids_B is None else DropoutKeys(seed=seed, sample_ids=tuple(sample_ids_B.tolist()))
    token = _current_keys.set(keys)
    try:
        yield
    finally:
        _current_keys.reset(token)


def current_keys(place: str) -> DropoutKeys:
    """Return the keys of the micro-batch whose forward is running.

    Raises:
        RuntimeError: no `dropout_of` with sample ids surrounds the forward; without one, nothing would be dropped.
    """
    keys = _current_keys.get()
    if keys is None:
        raise RuntimeError(
            f"{place}: dropout in training needs the sample ids of the micro-batch\n"
            "  -> run the forward inside dropout_of(batch.sample_ids_B, seed), or call eval() on the model"
        )
    return keys


def drop_elements(
    hidden_BTD: Tensor, probability: float, keys: DropoutKeys, place: str, *, part: int = 0, num_parts: int = 1
) -> Tensor:
    """Return hidden states with elements set to zero with a probability, the others scaled by 1/(1 - probability).

    Shape, dtype and, over many masks, the expectation stay (arXiv:1207.0580; scaled in training as in torch's own).
    Each sequence has a mask of its own, drawn for its [T, D] alone: batches may differ in T.

    Args:
        hidden_BTD: output of a residual branch.
        probability: 0 <= probability < 1.
        keys: one sample id per sequence of the batch.
        place: canonical name of the branch; each place has its own masks.
        part: which of equal parts of each sequence's tokens these are.
        num_parts: how many there are; each draws the whole sequence's mask.

    Raises:
        RuntimeError: the keys are those of another number of sequences.
    """
    if len(keys.sample_ids) != len(hidden_BTD):
        raise RuntimeError(f"{place}: {len(keys.sample_ids)} sample ids for {len(hidden_BTD)} sequences")
    B, T, D = hidden_BTD.shape
    dropped_BTD = torch.empty((B, T * num_parts, D), dtype=torch.bool, device=hidden_BTD.device)
    generator = torch.Generator(hidden_BTD.device)
    for sample, dropped_TD in enumerate(dropped_BTD):
        dropped_TD.bernoulli_(probability, generator=generator.manual_seed(keys.generator_seed(sample, place)))
    dropped_BTD = dropped_BTD[:, part * T : (part + 1) * T]
    # The scale is a number, not part of a mask in the hidden dtype: bf16 would round 1/(1 - 0.1) by 0.16 %.
    return (hidden_BTD * (1 / (1 - probability))).masked_fill(dropped_BTD, 0.0)

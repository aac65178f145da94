"""Greedy samples side by side: the same prompt before the first and after each training stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from training.reporting.evaluations import occasion
from training.reporting.records import EvalRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What the model wrote on one occasion."""

    title: str
    """"before training", "after pretrain", or "pretrain, step 40"."""
    text: str
    bits_per_byte: float | None
    stages: list[str]
    """Training stages that it was written before or after, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSamples:
    """All that was written after one prompt."""

    prompt: str
    samples: list[Sample]
    """Before the first and after each training stage, in the order of steps."""
    in_between: list[Sample]
    """In the midst of training stages."""


def samples_of(evals: Sequence[EvalRecord]) -> list[PromptSamples]:
    """Return the samples, prompt by prompt; of a training stage that was evaluated twice with a prompt, the latest.

    Args:
        evals: in the order of steps.
    """
    found = []
    for prompt in dict.fromkeys(sample["prompt"] for record in evals for sample in record.samples):
        mine = [(record, s["text"]) for record in evals for s in record.samples if s["prompt"] == prompt]
        ends = list({record.stage: (record, text) for record, text in mine if not record.in_between}.values())
        following = [record.stage for record, _ in ends[1:]]
        found.append(
            PromptSamples(
                prompt=prompt,
                samples=[
                    _sample(record, text, [record.stage, *following[place : place + 1]])
                    for place, (record, text) in enumerate(ends)
                ],
                in_between=[_sample(record, text, [record.stage]) for record, text in mine if record.in_between],
            )
        )
    return found


def _sample(record: EvalRecord, text: str, stages: list[str]) -> Sample:
    if record.in_between:
        title = occasion(record)
    else:
        title = "before training" if record.stage == "start" else f"after {record.stage}"
    return Sample(title=title, text=text, bits_per_byte=record.bits_per_byte, stages=stages)

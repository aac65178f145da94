"""Runs many tries at workflow tasks in step: every answer that is due is asked of the model in one batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from eval.reliability import pass_hat
from eval.workflows.chat import ChatModel
from eval.workflows.conversation import Conversation
from eval.workflows.simulator import Systems
from eval.workflows.tasks import WorkflowTask
from training.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TryResult:
    """What came of one try at one task."""

    task: str
    category: str
    attempt: int
    """0 for the first try."""
    solved: bool
    fault: str | None
    """Why it is not solved."""
    num_turns: int
    """Turns of the user that were begun."""
    num_answers: int
    num_calls: int
    """Calls that were run."""
    num_refused_calls: int
    """Calls of functions that there are not, or with arguments that are no literals."""


def run_workflows(
    tasks: Sequence[WorkflowTask],
    model: ChatModel,
    systems: Systems,
    *,
    num_tries: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    compact: bool = False,
) -> list[TryResult]:
    """Return the result of every try at every task: all tries of the first task, then of the second.

    Deterministic if the model is.

    Args:
        tasks: what to do.
        model: who does it. On several ranks, all call this alike: the model and the systems have to answer alike.
        systems: where it is done.
        num_tries: at each task.
        max_new_tokens: of each answer.
        temperature: above 0 if there are several tries.
        seed: of all tries; each answer of each try has one of its own, made from it.
        compact: see Conversation.

    Raises:
        ConfigError: several tries that would all be the same.
    """
    if num_tries > 1 and temperature == 0:
        reason = "at temperature 0 all tries are the same one"
        raise ConfigError("num_tries", num_tries, reason, "num_tries: 1, or a temperature above 0")
    tries = [
        (task, attempt, Conversation(task, systems, compact=compact)) for task in tasks for attempt in range(num_tries)
    ]
    while due := [entry for entry in tries if not entry[2].done]:
        answers = model.chat(
            [conversation.messages for _, _, conversation in due],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=[_seed(seed, task.id, attempt, talk.num_answers) for task, attempt, talk in due],
        )
        for (_, _, conversation), answer in zip(due, answers, strict=True):
            conversation.take(answer)
    return [
        TryResult(
            task=task.id,
            category=task.category,
            attempt=attempt,
            solved=conversation.fault is None,
            fault=conversation.fault,
            num_turns=conversation.num_turns,
            num_answers=conversation.num_answers,
            num_calls=conversation.num_calls,
            num_refused_calls=conversation.num_refused_calls,
        )
        for task, attempt, conversation in tries
    ]


def workflow_metrics(results: Sequence[TryResult]) -> dict[str, float]:
    """Return pass_at_1 and pass_hat_<k> for each k up to the number of tries, over all tasks and in each category.

    A category's numbers have its name behind a slash: `pass_at_1/miss_func`.
    """
    metrics = _metrics(results, "")
    for category in sorted({result.category for result in results}):
        metrics |= _metrics([result for result in results if result.category == category], f"/{category}")
    return metrics


def _metrics(results: Sequence[TryResult], suffix: str) -> dict[str, float]:
    solved: dict[str, int] = {}
    for result in results:
        solved[result.task] = solved.get(result.task, 0) + result.solved
    num_tries = len(results) // len(solved)
    shares = {k: pass_hat(solved.values(), num_tries, k) for k in range(1, num_tries + 1)}
    return {f"pass_at_1{suffix}": shares[1]} | {f"pass_hat_{k}{suffix}": shares[k] for k in shares if k > 1}


def _seed(seed: int, task: str, attempt: int, answer: int) -> int:
    """Return the seed of one answer: a pure function of its place, so that it depends on no other try."""
    digest = hashlib.sha256(f"{seed} {task} {attempt} {answer}".encode()).digest()
    return int.from_bytes(digest[:4], "big")

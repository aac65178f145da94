"""Which continuation is the real one? Questions made from held-out text, so they need no outside data set.

A question shows 48 tokens of a document; the right answer is the 16 tokens that follow, the wrong ones are 16 tokens
at the same position of other documents. All choices are equally long, so log-probabilities compare without a norm.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from eval.conductor import TokenModel
from eval.data import EvalData, HeldOutDocument, suite_documents
from eval.metrics import accuracy
from eval.requests import Continuation
from eval.tasks.base import Task, TaskResult, content_key, items_by_key
from training.config.eval_schema import SuiteConfig
from training.config.gate_schema import Metric
from training.errors import DataError

CONTEXT_TOKENS = 48
CONTINUATION_TOKENS = 16
NUM_CHOICES = 4
_WINDOW_TOKENS = CONTEXT_TOKENS + CONTINUATION_TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One context and its possible continuations."""

    id: str
    """Document and position of the context."""
    context_ids: list[int]
    choices_ids: list[list[int]]
    right: int
    """Index of the real continuation."""


def make_questions(documents: Sequence[HeldOutDocument], num_questions: int) -> list[Question]:
    """Return the first questions that the documents give, the same every time; fewer if there is not enough text."""
    questions: list[Question] = []
    for question in _all_questions(documents):
        if len(questions) == num_questions:
            break
        questions.append(question)
    return questions


def _all_questions(documents: Sequence[HeldOutDocument]) -> Iterator[Question]:
    """Yield questions from the first window of every document, then from the second window, and so on."""
    start = 0
    while len(eligible := [d for d in documents if len(d.token_ids) >= start + _WINDOW_TOKENS]) >= NUM_CHOICES:
        for index in range(len(eligible)):
            question = _question(eligible, index, start)
            if question is not None:
                yield question
        start += _WINDOW_TOKENS


def _question(documents: Sequence[HeldOutDocument], index: int, start: int) -> Question | None:
    """Return the question of one document at one position; None if too few other documents differ from it there."""
    document = documents[index]
    question_id = f"{document.id}@{start}"
    seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:8])
    split = start + CONTEXT_TOKENS
    choices = [document.token_ids[split : split + CONTINUATION_TOKENS].tolist()]
    num_others = len(documents) - 1
    for step in range(num_others):
        other = documents[(index + 1 + (seed + step) % num_others) % len(documents)]
        choice = other.token_ids[split : split + CONTINUATION_TOKENS].tolist()
        if choice not in choices:
            choices.append(choice)
        if len(choices) == NUM_CHOICES:
            break
    else:
        return None
    right = (seed >> 32) % NUM_CHOICES
    choices[0], choices[right] = choices[right], choices[0]
    context = document.token_ids[start:split].tolist()
    return Question(id=question_id, context_ids=context, choices_ids=choices, right=right)


def _run(model: TokenModel, data: EvalData, suite: SuiteConfig) -> TaskResult:
    """Score all choices; an answer is right if the real continuation is more likely than every other one."""
    questions = make_questions(suite_documents(data, suite), suite.multiple_choice_items)
    if not questions:
        raise DataError(
            f"source {suite.held_out_source} gives no multiple-choice question: it needs {NUM_CHOICES} held-out "
            f"documents of {_WINDOW_TOKENS} tokens\n"
            "  -> set multiple_choice_items: 0 in the suite, or raise held_out_documents or data.held_out_fraction"
        )
    scores = model.score(
        [
            Continuation(context_ids=[data.tokenizer.eos_id, *question.context_ids], continuation_ids=choice)
            for question in questions
            for choice in question.choices_ids
        ]
    )
    items, correct = [], []
    for i, question in enumerate(questions):
        logprobs = [score.logprob for score in scores[i * NUM_CHOICES : (i + 1) * NUM_CHOICES]]
        # Compared this way round, neither a tie nor a NaN counts as right.
        correct.append(all(logprobs[question.right] > lp for c, lp in enumerate(logprobs) if c != question.right))
        items.append(
            {
                "id": question.id,
                "key": content_key(question.context_ids, *question.choices_ids),
                "right": question.right,
                "logprobs": logprobs,
                "correct": correct[-1],
            }
        )
    share = accuracy(correct)
    return TaskResult(
        metrics={
            "multiple_choice_accuracy": share.value,
            "multiple_choice_standard_error": share.standard_error,
            "multiple_choice_chance": 1.0 / NUM_CHOICES,
            "multiple_choice_items": float(len(questions)),
        },
        items=items,
    )


MULTIPLE_CHOICE = Task(
    name="multiple_choice",
    version=1,
    run=_run,
    metrics={
        Metric.multiple_choice_accuracy: partial(items_by_key, above="correct", below=None, higher_is_better=True)
    },
)

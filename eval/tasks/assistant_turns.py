"""Loss on what the assistant says in held-out conversations: the number that supervised fine-tuning makes smaller."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from eval.conductor import TokenModel
from eval.data import EvalData, suite_conversations
from eval.metrics import ratio_interval
from eval.requests import Continuation
from eval.tasks.base import Task, TaskResult, content_key, items_by_key
from training.config.eval_schema import SuiteConfig
from training.config.gate_schema import Metric


def _run(model: TokenModel, data: EvalData, suite: SuiteConfig) -> TaskResult:
    """Score each of the assistant's turns after all tokens before it, as far as the beginning that is scored goes."""
    conversations = suite_conversations(data, suite)
    ids = [one.token_ids[: suite.document_tokens].tolist() for one in conversations]
    spans = [list(turns(one.is_target[: suite.document_tokens])) for one in conversations]
    asked = [
        Continuation(context_ids=tokens[:start], continuation_ids=tokens[start:end])
        for tokens, of_one in zip(ids, spans, strict=True)
        for start, end in of_one
    ]
    scores = iter(model.score(asked))
    nats = [[-next(scores).logprob for _ in of_one] for of_one in spans]
    num_tokens = [sum(end - start for start, end in of_one) for of_one in spans]
    totals = [math.fsum(of_turns) for of_turns in nats]
    low, high = ratio_interval(totals, num_tokens)
    return TaskResult(
        metrics={
            Metric.assistant_nats_per_token: math.fsum(totals) / sum(num_tokens),
            "assistant_nats_per_token_low": low,
            "assistant_nats_per_token_high": high,
            "held_out_conversations": float(len(conversations)),
            "assistant_tokens": float(sum(num_tokens)),
        },
        items=[
            {
                "id": conversation.id,
                "key": content_key(ids[place], [edge for span in spans[place] for edge in span]),
                "nats": totals[place],
                "num_tokens": num_tokens[place],
                "num_turns": len(nats[place]),
            }
            for place, conversation in enumerate(conversations)
        ],
    )


def turns(is_target: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of targets; the first token, which follows nothing, is in none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False, False], is_target[1:], [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


ASSISTANT_TURNS = Task(
    name="assistant_turns",
    version=1,
    run=_run,
    metrics={
        Metric.assistant_nats_per_token: partial(items_by_key, above="nats", below="num_tokens", higher_is_better=False)
    },
)

"""Bits per byte of held-out text, document by document."""

import math
from functools import partial

from eval.conductor import TokenModel
from eval.data import EvalData, suite_documents
from eval.metrics import bits_per_byte, ratio_interval
from eval.requests import Continuation
from eval.tasks.base import Task, TaskResult, content_key, items_by_key
from training.config.eval_schema import SuiteConfig
from training.config.gate_schema import Metric


def _run(model: TokenModel, data: EvalData, suite: SuiteConfig) -> TaskResult:
    """Score the beginning of each document after nothing but an eos token; bits = -log2 p."""
    documents = suite_documents(data, suite)
    beginnings = [document.token_ids[: suite.document_tokens].tolist() for document in documents]
    eos_id = data.tokenizer.eos_id
    scores = model.score([Continuation(context_ids=[eos_id], continuation_ids=ids) for ids in beginnings])
    bits = [-score.logprob / math.log(2.0) for score in scores]
    num_bytes = [sum(data.tokenizer.token_bytes(token) for token in ids) for ids in beginnings]
    num_tokens = [len(ids) for ids in beginnings]
    low, high = ratio_interval(bits, num_bytes)
    return TaskResult(
        metrics={
            "bits_per_byte": bits_per_byte(bits, num_bytes),
            "bits_per_byte_low": low,
            "bits_per_byte_high": high,
            "held_out_nats_per_token": math.fsum(bits) * math.log(2.0) / sum(num_tokens),
            "held_out_documents": float(len(documents)),
            "held_out_bytes": float(sum(num_bytes)),
        },
        items=[
            {
                "id": document.id,
                "key": content_key(beginnings[i]),
                "bits": bits[i],
                "num_bytes": num_bytes[i],
                "num_tokens": num_tokens[i],
            }
            for i, document in enumerate(documents)
        ],
    )


HELD_OUT = Task(
    name="held_out",
    version=1,
    run=_run,
    metrics={Metric.bits_per_byte: partial(items_by_key, above="bits", below="num_bytes", higher_is_better=False)},
)

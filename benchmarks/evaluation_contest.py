"""Items per second of lm_eval on the live engine beside its own HFLM: SmolLM2-135M, one process, in turns.

Both answer the same requests with the same batch size, and their answers are compared: a fast model that says
something else would be no comparison.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from benchmarks.tables import spread, table
from eval.benchmarks.local_text import held_out_documents
from eval.live_model import LiveModel
from eval.lm import EngineLM
from eval.run import Undisturbed
from eval.text_tokenizers import HuggingFaceTokenizer
from training.checkpoint.hugging_face import HuggingFaceSource, read_model_config
from training.config.data_schema import SourceKind
from training.config.load import compose
from training.engine import process_group
from training.engine.build import build_engine

BATCH_SEQUENCES = 8
_MAX_LENGTH = 1024
_OURS, _THEIRS = "Autarky, live engine", "lm_eval's HFLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationContest:
    """Seconds of both, kind by kind and round by round."""

    num_items: dict[str, int]
    """Kind of request -> items of a round."""
    seconds: dict[str, dict[str, list[float]]]
    """Kind -> contestant -> seconds of each round."""
    largest_difference: float
    """Between the log-likelihoods of both, in nats."""
    same_texts: int
    """Generated texts that are equal."""
    num_texts: int


def compete_in_evaluation(
    weights: Path, *, num_rounds: int, is_quick: bool, say: Callable[[str], None]
) -> EvaluationContest:
    """Return the seconds that both take for the same requests; the order changes with every round."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    ours, theirs = _ours(weights), _theirs(weights)
    asked = _requests(4 if is_quick else 1)
    seconds: dict[str, dict[str, list[float]]] = {kind: {_OURS: [], _THEIRS: []} for kind in asked}
    answers: dict[str, dict[str, Any]] = {_OURS: {}, _THEIRS: {}}
    for number in range(num_rounds):
        contestants = [(_OURS, ours), (_THEIRS, theirs)]
        for kind, requests in asked.items():
            for name, lm in contestants if number % 2 == 0 else contestants[::-1]:
                say(f"evaluation, round {number + 1} of {num_rounds}: {kind}, {name}")
                begun = time.perf_counter()
                with contextlib.redirect_stdout(sys.stderr):
                    answers[name][kind] = _METHODS[kind](lm, requests)
                seconds[kind][name].append(time.perf_counter() - begun)
    differences = [
        abs(a[0] - b[0])
        for a, b in zip(answers[_OURS]["multiple choice"], answers[_THEIRS]["multiple choice"], strict=True)
    ] + [abs(a - b) for a, b in zip(answers[_OURS]["rolling"], answers[_THEIRS]["rolling"], strict=True)]
    texts = list(zip(answers[_OURS]["generation"], answers[_THEIRS]["generation"], strict=True))
    return EvaluationContest(
        num_items={kind: len({request.doc["id"] for request in requests}) for kind, requests in asked.items()},
        seconds=seconds,
        largest_difference=max(differences),
        same_texts=sum(a == b for a, b in texts),
        num_texts=len(texts),
    )


def evaluation(contest: EvaluationContest) -> list[str]:
    """Return the section of the page."""
    rows = []
    for kind, of_kind in contest.seconds.items():
        rates = {name: [contest.num_items[kind] / s for s in seconds] for name, seconds in of_kind.items()}
        rows.append(
            [
                kind,
                str(contest.num_items[kind]),
                spread(rates[_OURS], ".2f"),
                spread(rates[_THEIRS], ".2f"),
                spread(_ratios(of_kind), ".2f"),
            ]
        )
    slowest = min(statistics.median(_ratios(of_kind)) for of_kind in contest.seconds.values())
    return [
        "## Evaluation",
        "",
        f"SmolLM2-135M in fp32, one process with all cores, batches of {BATCH_SEQUENCES}; the live engine is the one "
        "that trains (DeepSpeed, ZeRO-1). Multiple choice: four answers of one to twelve words to one question; "
        "rolling: documents of up to 1,024 tokens; generation: 32 tokens, greedy, stopped nowhere.",
        "",
        *table(["", "items", f"items/s, {_OURS}", f"items/s, {_THEIRS}", "ours ÷ theirs"], rows),
        "",
        f"At least as fast in every kind: {'yes' if slowest >= 1.0 else 'no'}. Log-likelihoods differ by at most "
        f"{contest.largest_difference:.1e} nats (torch's float32 log_softmax in HFLM is off by 7e-6 a token on CPU); "
        f"{contest.same_texts} of {contest.num_texts} texts are equal.",
    ]


def _ratios(of_kind: Mapping[str, Sequence[float]]) -> list[float]:
    return [theirs / ours for ours, theirs in zip(of_kind[_OURS], of_kind[_THEIRS], strict=True)]


def _ours(weights: Path) -> LM:
    processes = process_group.start(600)
    config = compose(["parallel=zero1", "stages.pretrain.eval_suite=null"])
    config = replace(config, model=read_model_config(weights))
    with contextlib.redirect_stdout(sys.stderr):
        engine = build_engine(config, "pretrain", processes, initial_weights=False)
        engine.load_weights(lambda: HuggingFaceSource(weights, config.model))
    tokenizer = HuggingFaceTokenizer.load(weights)
    lm = EngineLM(
        engine=Undisturbed(engine), speller=tokenizer, eos_id=tokenizer.eos_id, batch_sequences=BATCH_SEQUENCES
    )
    return LiveModel(lm, tokenizer, prefix_id=tokenizer.eos_id, max_length=_MAX_LENGTH)


def _theirs(weights: Path) -> LM:
    hflm: Any = HFLM  # its registration hides its parameters
    eos_id = HuggingFaceTokenizer.load(weights).eos_id
    return hflm(
        pretrained=str(weights),
        dtype="float32",
        device="cpu",
        batch_size=BATCH_SEQUENCES,
        max_length=_MAX_LENGTH,
        prefix_token_id=eos_id,
    )


def _requests(divisor: int) -> dict[str, list[Instance]]:
    """Return requests made of the embedded text, by kind."""
    texts = [document.text for document in held_out_documents(SourceKind.kjv)]
    questions = [" ".join(text.split()[:60]) for text in texts[: 40 // divisor]]
    choices = [[" ".join(text.split()[60 + 3 * i : 61 + 6 * i]) for i in range(4)] for text in texts[: 40 // divisor]]
    choice = [
        Instance(request_type="loglikelihood", doc={"id": number}, arguments=(question, f" {answer}"), idx=place)
        for number, (question, answers) in enumerate(zip(questions, choices, strict=True))
        for place, answer in enumerate(answers)
    ]
    rolling = [
        Instance(request_type="loglikelihood_rolling", doc={"id": n}, arguments=(text[:3500],), idx=0)
        for n, text in enumerate(texts[: 16 // divisor])
    ]
    options = {"until": [], "max_gen_toks": 32, "do_sample": False}
    generation = [
        Instance(
            request_type="generate_until",
            doc={"id": n},
            arguments=(" ".join(text.split()[: 20 + 2 * n]), options),
            idx=0,
        )
        for n, text in enumerate(texts[: 16 // divisor])
    ]
    return {"multiple choice": choice, "rolling": rolling, "generation": generation}


_METHODS: dict[str, Callable[[LM, list[Instance]], list[Any]]] = {
    "multiple choice": lambda lm, requests: lm.loglikelihood(requests),
    "rolling": lambda lm, requests: lm.loglikelihood_rolling(requests),
    "generation": lambda lm, requests: lm.generate_until(requests),
}

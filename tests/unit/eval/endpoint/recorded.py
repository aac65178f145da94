"""Journals of real servers, which the tests replay, and the requests they answer.

    python -m tests.unit.eval.endpoint.recorded NAME        asks a server again, which has to run at NAME's address

chat     transformers 5.23.0: `transformers serve .weights/smollm2_135m --port 18765 --device cpu`
scores   llama-cpp-python 0.3.36: `python -m llama_cpp.server --model SmolLM2-135M-Instruct.Q4_1.gguf --port 18767
         --logits_all true --model_alias smol --kv_overrides tokenizer.ggml.add_bos_token=bool:true`
shifted  the same with --port 18766 and without the last option: its scores are those of the next token
silent   transformers again, whose completions answer requests for echo and logprobs without either
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from eval.endpoint.config import Api, EndpointConfig
from eval.endpoint.lm import EndpointLM
from training.errors import EndpointError

FOLDER = Path(__file__).parent / "journals"
SMOLLM2 = ".weights/smollm2_135m"
SERVERS: dict[str, dict[str, Any]] = {
    "chat": {"base_url": "http://127.0.0.1:18765/v1", "model": SMOLLM2, "multiple_choice_by_letter": True},
    "scores": {
        "base_url": "http://127.0.0.1:18767/v1",
        "model": "smol",
        "api": Api.completions,
        "prefix_text": "<|endoftext|>",
    },
    "shifted": {"base_url": "http://127.0.0.1:18766/v1", "model": "smol", "api": Api.completions},
    "silent": {"base_url": "http://127.0.0.1:18765/v1", "model": SMOLLM2, "api": Api.completions},
}
PROMPTS = ["Write the numbers from 1 to 5.", "What is the capital of France?"]
OPTIONS = ["Paris", "Rome", "Berlin", "Madrid"]
CONTEXT = "The capital of France is"
TEXT = "The café was “closed”. She said 😀 and went home."
"""With characters of one to four bytes; the last is cut into several tokens."""


def instances(
    kind: Any, arguments: Sequence[tuple[Any, ...]], *, task: str = "task", one_item: bool = False
) -> list[Any]:
    """What lm_eval hands over; one item per request, or all of one."""
    return [Instance(kind, {}, each, i, metadata=(task, 0 if one_item else i, 1)) for i, each in enumerate(arguments)]


def generations(**settings: Any) -> list[Any]:
    """Requests to go on after PROMPTS."""
    return instances("generate_until", [(p, {"until": ["\n\n"], "max_gen_toks": 16, **settings}) for p in PROMPTS])


def multiple_choice() -> list[Any]:
    """Requests for the scores of OPTIONS after CONTEXT."""
    return instances("loglikelihood", [(CONTEXT, f" {option}") for option in OPTIONS], one_item=True)


def lm_of(name: str, journal: Path | None = None, **values: Any) -> EndpointLM:
    """The model of one of SERVERS, by default from its journal alone."""
    known = {"journal": journal or FOLDER / f"{name}.jsonl", "offline": journal is None, "concurrency": 1}
    return EndpointLM(EndpointConfig(**{**SERVERS[name], **known, **values}))


def ask_everything(lm: EndpointLM) -> None:
    """Ask what the tests ask."""
    if lm.config.api is Api.chat:
        lm.generate_until(generations())
        lm.generate_until([r for r in generations(do_sample=True, temperature=0.8) for _ in range(2)])
        history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[1]}]
        prompt = lm.apply_chat_template(history)
        lm.generate_until(instances("generate_until", [(prompt, {"until": [], "max_gen_toks": 16})]))
        lm.loglikelihood(multiple_choice())
    else:
        try:
            lm.loglikelihood(multiple_choice())
            lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
            lm.loglikelihood(instances("loglikelihood", [("", TEXT), ("The  ", "end")]))
            lm.generate_until(generations())
        except EndpointError as error:
            print(error)


if __name__ == "__main__":
    asked = lm_of(sys.argv[1], FOLDER / f"{sys.argv[1]}.jsonl")
    ask_everything(asked)
    asked.close()

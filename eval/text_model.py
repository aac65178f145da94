"""A model of text asked in tokens of another tokenizer: how a partner's model is measured on a run's documents."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from eval.requests import Continuation, Prompt, ScoredContinuation
from eval.text_tokenizers import TextTokenizer


class TextModel:
    """What `conductor.TokenModel` asks for, over any model of lm_eval.

    Token ids become the text they stand for. Bits per byte compare between tokenizers, so both models are measured on
    the same characters; where a cut falls inside of one, the partner sees U+FFFD in its place.

    Args:
        lm: the model.
        tokenizer: whose token ids it is asked in.
    """

    def __init__(self, lm: LM, tokenizer: TextTokenizer) -> None:
        self._lm = lm
        self._tokenizer = tokenizer

    def score(self, continuations: Sequence[Continuation]) -> list[ScoredContinuation]:
        """Return the score of each continuation, in order; an eos token before a text is left to the model."""
        pairs = [(self._text(one.context_ids), self._text(one.continuation_ids)) for one in continuations]
        requests = [_request("loglikelihood", pair, index) for index, pair in enumerate(pairs)]
        return [
            ScoredContinuation(logprob=logprob, is_greedy=greedy)
            for logprob, greedy in self._lm.loglikelihood(requests)
        ]

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return what follows each prompt, as this tokenizer splits it."""
        requests = [
            _request(
                "generate_until",
                (
                    self._text(prompt.ids),
                    {
                        "until": list(prompt.stop),
                        "max_gen_toks": prompt.max_new_tokens,
                        "do_sample": prompt.temperature > 0,
                        "temperature": prompt.temperature,
                    },
                ),
                index,
            )
            for index, prompt in enumerate(prompts)
        ]
        return [self._tokenizer.encode(text) for text in self._lm.generate_until(requests)]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([token for token in ids if token != self._tokenizer.eos_id])


def _request(kind: Any, arguments: tuple[Any, ...], index: int) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=index)

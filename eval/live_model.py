"""The live model as lm-evaluation-harness sees it (`lm_eval.api.model.LM`, 0.4.13): text in, numbers and text out.

What is done to text before and after is what lm_eval's own HFLM does with a Hugging Face model (lm_eval/models/
huggingface.py), so that both give the same numbers: how context and continuation are split into tokens, where long
inputs are cut, what ends a generation. It runs on rank 0; `eval.conductor` lets all ranks compute.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.conductor import TokenModel
from eval.requests import Continuation, Prompt
from eval.text_tokenizers import TextTokenizer
from training.errors import ConfigError


class LiveModel(TemplateLM):
    """An LM over tokens as one of text.

    Args:
        model: computes, on all ranks.
        tokenizer: the model's.
        prefix_id: token that stands where a text begins: before a text without context, and before rolling text.
        max_length: most tokens of context and continuation together.
        max_new_tokens: of a generation whose task does not say.
        seed: of sampled generations.
    """

    def __init__(
        self,
        model: TokenModel,
        tokenizer: TextTokenizer,
        *,
        prefix_id: int,
        max_length: int,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._model = model
        self._text = tokenizer
        self._prefix_id = prefix_id
        self._max_length = max_length
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._drawn: dict[str, int] = {}
        """How often a prompt was sampled: each time is another one."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a generation."""
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self._prefix_id

    @property
    def tokenizer_name(self) -> str:
        """What identifies the tokenizer and its template in lm_eval's caches."""
        return self._text.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the token ids of a text; nothing is put before it."""
        return self._text.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's template if one is to be applied."""
        return self._text.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text."""
        return self._text.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log p of each text after the prefix token: of windows that do not overlap, if it is long."""
        windows = [list(self._windows(*request.args)) for request in requests]
        scores = iter(self._model.score([window for of_text in windows for window in of_text]))
        return [sum(next(scores).logprob for _ in of_text) for of_text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that follows each prompt, up to the first of its stop strings."""
        prompts = [self._prompt(*request.args) for request in requests]
        new = self._model.generate(prompts)
        return [
            postprocess_generated_text(self._text.decode(ids), stop=list(prompt.stop), think_end_token=None)
            for ids, prompt in zip(new, prompts, strict=True)
        ]

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [(context, continuation) for _, context, continuation in requests]
        longest = max((len(continuation) for _, continuation in asked), default=0)
        if longest > self._max_length:
            raise ConfigError(
                "max_length",
                self._max_length,
                f"an answer to be scored has {longest} tokens, and would be scored in part",
                f"a max_length of the suite of {longest} at least, or shorter document_tokens",
            )
        scores = self._model.score([self._cut(context, continuation) for context, continuation in asked])
        return [(score.logprob, score.is_greedy) for score in scores]

    def _windows(self, text: str) -> Iterable[Continuation]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self._prefix_id,
            max_seq_len=self._max_length,
            context_len=1,
        )
        for context, continuation in map(make_disjoint_window, windows):
            yield self._cut(context, continuation)

    def _cut(self, context: list[int], continuation: list[int]) -> Continuation:
        """Return the request with as much of the context as the model can see; a continuation keeps its end."""
        kept = [*context, *continuation][-(self._max_length + 1) :]
        num_targets = min(len(continuation), len(kept) - 1)
        return Continuation(context_ids=kept[:-num_targets], continuation_ids=kept[-num_targets:])

    def _prompt(self, text: str, asked: dict[str, Any]) -> Prompt:
        """Return a prompt of lm_eval: what it asks for in the terms of Hugging Face's `generate`."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(asked, self._max_new_tokens))
        stop = handle_stop_sequences(wanted.get("until"), eos=self._text.token_text(self._text.eos_id))
        max_new_tokens = int(wanted["max_gen_toks"])
        if max_new_tokens >= self._max_length:
            raise ConfigError(
                "max_new_tokens",
                max_new_tokens,
                f"the longest sequence has {self._max_length} tokens: no room is left for the question",
                "a smaller max_new_tokens of the benchmark, or a larger max_length of the suite",
            )
        is_sampled = bool(wanted.get("do_sample")) and float(wanted.get("temperature") or 0.0) > 0.0
        ids = self.tok_encode(text)[-(self._max_length - max_new_tokens) :]
        return Prompt(
            ids=ids or [self._prefix_id],
            max_new_tokens=max_new_tokens,
            stop=tuple(s for s in (*stop, self._text.end_of_turn) if s),
            temperature=float(wanted["temperature"]) if is_sampled else 0.0,
            top_p=float(wanted.get("top_p") or 1.0) if is_sampled else 1.0,
            seed=self._draw(text, wanted.get("seed")) if is_sampled else 0,
        )

    def _draw(self, text: str, seed: Any) -> int:
        """Return the seed of a sampled generation: of the text, and of how often it was drawn before."""
        count = self._drawn.get(text, 0)
        self._drawn[text] = count + 1
        chosen = self._seed if seed is None else seed
        return int.from_bytes(hashlib.sha256(f"{chosen}/{count}/{text}".encode()).digest()[:8], "big") >> 1

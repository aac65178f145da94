"""Conversations to tokens, each with whether it is a target: a token that the model itself has to say.

Targets are the assistant's turns with the token that ends each, found by rendering beginnings of the conversation: what
a turn adds behind the generation prompt is what the model says at inference, token for token.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import tokenizers
from jinja2.exceptions import TemplateError

from training.data.messages import BadRecord, Messages, checked_messages, checked_tools, texts_in, written_as_text
from training.data.tokenizer_directory import TokenizerDirectory
from training.errors import ConfigError

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Template of tokenizers that have its two special tokens and none of their own. Format: OpenAI's ChatML (openai-python
v0.27.0, chatml.md)."""

_PROBE: Messages = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probed_function",
        "description": "Return a number.",
        "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]},
    },
}
_PROBE_CALL = {"type": "function", "function": {"name": "probed_function", "arguments": {"amount": 7}}}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedConversation:
    """A conversation in tokens."""

    token_ids: list[int]
    is_target: list[bool]
    """Of each token: whether the model has to say it."""


class ChatTemplate:
    """How a tokenizer writes conversations.

    Where its template knows no `tools`, they go into the system message, and calls into the assistant's text, as
    `call_text` writes them.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, template: str, *, named_tokens: Mapping[str, str] | None = None
    ) -> None:
        """Find out on small conversations what the template does.

        Args:
            tokenizer: splits what the template writes; it is not changed.
            template: Jinja text, rendered in transformers' sandbox.
            named_tokens: eos_token and the like -> their texts, which templates may name.
        """
        self.template = template
        self._named_tokens = dict(named_tokens or {})
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = False
        # Of what it would do, only one thing is left without special tokens: it takes white space out of the offsets.
        self._tokenizer.post_processor = None
        added = self._tokenizer.get_added_tokens_decoder()
        # Longest first: of "<|a|>" and "<|a|>b" the one that is there is to be found.
        self._special_texts = sorted((token.content for token in added.values() if token.special), key=len)[::-1]
        self._special = re.compile("|".join(map(re.escape, self._special_texts)) or r"(?!)")
        self.renders_tools = self._probed_tools()
        """Whether the template itself writes `tools` and `tool_calls`."""
        self.end_of_turn = self._probed_end()
        """Text of the special token that ends an assistant's turn; None if none does."""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Return the template of a tokenizer's directory; CHATML if it has none of its own and both its tokens.

        Returns:
            None if there is neither.

        Raises:
            DataError: there is no tokenizer that can be read.
        """
        read = TokenizerDirectory.read(directory)
        added = {token.content for token in read.tokenizer.get_added_tokens_decoder().values() if token.special}
        template = read.chat_template or (CHATML if added.issuperset(CHATML_TOKENS) else None)
        return cls(read.tokenizer, template, named_tokens=read.named_tokens) if template else None

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return the template of a tokenizer's directory, checked that conversations can be learned from it.

        Raises:
            ConfigError: there is none, or it does not write a conversation turn by turn.
            DataError: there is no tokenizer that can be read.
        """
        if (chat := cls.read(directory)) is None:
            raise ConfigError(
                "data.tokenizer",
                directory,
                "it has no chat template, which conversations need",
                f"put a chat_template.jinja there, or add the special tokens {' and '.join(CHATML_TOKENS)}",
            )
        chat.check()
        return chat

    def check(self) -> None:
        """Check that a conversation is written turn by turn, and that a special token ends each.

        Raises:
            ConfigError: it is not.
        """
        try:
            self._spans(_PROBE, (), first=0)
        except BadRecord as error:
            raise ConfigError(
                "data.tokenizer",
                "its chat template",
                f"a conversation of two turns cannot be learned from: {error}",
                "give a chat_template.jinja that writes a conversation as its first turns followed by the others, and "
                "that ends each turn with the same special token",
            ) from error

    def render(
        self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] = (), add_generation_prompt: bool = False
    ) -> str:
        """Return a conversation as text.

        Raises:
            BadRecord: the template refuses it.
        """
        if not self.renders_tools:
            messages, tools = written_as_text(messages, tools), ()
        return self._rendered(messages, tools, add_generation_prompt)

    def _rendered(self, messages: Messages, tools: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        # Imported only now: every rank reads this module, few render anything.
        from transformers.utils.chat_template_utils import render_jinja_template

        named: dict[str, Any] = dict(self._named_tokens)
        try:
            texts, _ = render_jinja_template(
                [list(messages)],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                **named,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise BadRecord(f"the chat template refuses it: {error}") from error
        return texts[0]

    def tokens_of(self, text: str) -> list[int]:
        """Return the token ids of what the template wrote: names of special tokens in it become those tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_conversation(self, record: Mapping[str, Any]) -> EncodedConversation:
        """Return the tokens of a record {"messages": [...], "tools"?: [...]}.

        Raises:
            BadRecord: it cannot be used.
        """
        messages, tools = checked_messages(record, "messages"), checked_tools(record)
        return self._encode(messages, tools, first=0)

    def encode_preference(self, record: Mapping[str, Any]) -> tuple[EncodedConversation, EncodedConversation]:
        """Return the tokens of a record {"prompt", "chosen", "rejected", "tools"?}: prompt with chosen, with rejected.

        Targets are the turns of the answers alone, not those in the prompt.

        Raises:
            BadRecord: it cannot be used.
        """
        prompt, tools = checked_messages(record, "prompt"), checked_tools(record)
        answers = [checked_messages(record, name) for name in ("chosen", "rejected")]
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            if answer[0]["role"] != "assistant":
                raise BadRecord(f"{name} does not begin with an assistant turn")
        chosen, rejected = (self._encode([*prompt, *answer], tools, first=len(prompt)) for answer in answers)
        if chosen.token_ids == rejected.token_ids:
            raise BadRecord("chosen and rejected are the same")
        return chosen, rejected

    def _encode(self, messages: Messages, tools: Sequence[Mapping[str, Any]], *, first: int) -> EncodedConversation:
        """Return the tokens of a conversation whose targets are the assistant's turns from message `first` on."""
        for text in texts_in(messages, tools):
            if found := self._special.search(text):
                raise BadRecord(f"a message holds the special token {found.group()}")
        text, spans = self._spans(messages, tools, first=first)
        token_ids, starts = self._tokens(text, [begin for begin, _ in spans])
        is_target = [False] * len(token_ids)
        for begin, end in spans:
            here, behind = bisect_left(starts, begin), bisect_left(starts, end)
            is_target[here:behind] = [True] * (behind - here)
        return EncodedConversation(token_ids=token_ids, is_target=is_target)

    def _tokens(self, text: str, begins: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the tokens of a text and where in it each starts; none reaches over one of `begins`.

        A tokenizer may join white space at the beginning of an answer to the line end before it. At inference the
        prompt ends there, so the model has to say that white space by itself: such a text is split in two pieces.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        joined = [b for b in begins if (i := bisect_left(starts, b)) > 0 and encoding.offsets[i - 1][1] > b]
        if not joined:
            return encoding.ids, starts
        token_ids, starts = [], []
        for begin, end in pairwise([0, *joined, len(text)]):
            piece = self._tokenizer.encode(text[begin:end], add_special_tokens=False)
            token_ids += piece.ids
            starts += [begin + start for start, _ in piece.offsets]
        return token_ids, starts

    def _spans(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]], *, first: int
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation as text, and from where to where in it the assistant speaks."""
        turns = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
        if not turns:
            raise BadRecord("no assistant turn")
        rendered: list[str] = []
        for index in turns:
            rendered.append(self.render(messages[:index], tools=tools, add_generation_prompt=True))
            rendered.append(self.render(messages[: index + 1], tools=tools))
        if turns[-1] < len(messages) - 1:
            rendered.append(self.render(messages, tools=tools))
        if not all(later.startswith(earlier) for earlier, later in pairwise(rendered)):
            raise BadRecord("the chat template writes earlier messages anew in later turns")
        spans = []
        for number in range(len(turns)):
            before, through = rendered[2 * number], rendered[2 * number + 1].rstrip()
            if self.end_of_turn is None or not through.endswith(self.end_of_turn):
                raise BadRecord("no special token ends an assistant turn, or not always the same")
            spans.append((len(before), len(through)))
        return rendered[-1], spans

    def _probed_end(self) -> str | None:
        """Return the text of the special token that ends an assistant's turn."""
        try:
            text = self.render(_PROBE[:2]).rstrip()
        except BadRecord:
            return None  # `check` says so where it matters
        return next((special for special in self._special_texts if text.endswith(special)), None)

    def _probed_tools(self) -> bool:
        """Return whether the template itself writes functions and calls."""
        called = [_PROBE[0], {"role": "assistant", "content": "", "tool_calls": [_PROBE_CALL]}]
        try:
            offered, made = self._rendered(_PROBE[:1], [_PROBE_TOOL], False), self._rendered(called, (), False)
            return "probed_function" in offered and "probed_function" in made
        except BadRecord:
            return False

"""The tokenizers that models are evaluated with: the one a run was trained with, or a Hugging Face directory's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from eval.data import Tokenizer
from training.data.chat import ChatTemplate
from training.data.messages import BadRecord
from training.data.shards import PreparedData
from training.data.tokenizer_directory import TokenizerDirectory
from training.errors import DataError


class TextTokenizer(Protocol):
    """Text to token ids and back, as the model was trained with it."""

    @property
    def name(self) -> str:
        """What identifies it in a report."""
        ...

    @property
    def eos_id(self) -> int:
        """Token that ends a generation."""
        ...

    @property
    def end_of_turn(self) -> str | None:
        """Text of the token that ends an assistant's turn, where that is another one."""
        ...

    @property
    def chat_template(self) -> str | None:
        """Jinja template of conversations; None if it has none."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """Return the token ids of a text, without any token before or behind it."""
        ...

    def decode(self, token_ids: Sequence[int], /) -> str:
        """Return the text of token ids, special tokens left out."""
        ...

    def spelled(self, token_ids: Sequence[int], /) -> str:
        """Return the text of token ids, special tokens by their names."""
        ...

    def token_text(self, token_id: int, /) -> str:
        """Return how one token is written, special ones too."""
        ...

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as text."""
        ...


class RunTokenizer:
    """A run's own; where it has no chat template, conversations are written as plain text."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self.chat_template = chat.template if chat else None
        self.end_of_turn = chat.end_of_turn if chat else None
        template = f"/{hashlib.sha256(chat.template.encode()).hexdigest()[:16]}" if chat else ""
        self.name = f"sha256:{tokenizer.fingerprint}{template}"
        self.eos_id = tokenizer.eos_id

    @classmethod
    def of(cls, data: PreparedData) -> Self:
        """Return the tokenizer of prepared data, with its chat template if it has one."""
        return cls(data.tokenizer, ChatTemplate.read(data.tokenizer.directory))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; with a chat template, names of special tokens in it become those tokens."""
        return self._chat.tokens_of(text) if self._chat else list(self._tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return self._tokenizer.decode(token_ids)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names."""
        return self._tokenizer.spelled(token_ids)

    def token_text(self, token_id: int) -> str:
        """Return how a token is written, special ones by their names."""
        return self._tokenizer.spelled([token_id])

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as the model is trained on it; without a template as lines "role: content".

        Raises:
            DataError: the template refuses it.
        """
        if self._chat:
            try:
                return self._chat.render(messages, add_generation_prompt=add_generation_prompt)
            except BadRecord as error:
                raise DataError(f"{error}\n  -> give data.tokenizer a chat template that writes all roles") from error
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")


class HuggingFaceTokenizer:
    """A Hugging Face directory's tokenizer and chat template; no code of the directory runs, nothing is fetched."""

    end_of_turn = None
    """Its eos_token ends its turns, too."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self.eos_id: int = tokenizer.eos_token_id
        self.chat_template: str | None = tokenizer.chat_template

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Return the tokenizer of a directory.

        Raises:
            DataError: there is none, or it names no end-of-text token.
        """
        read = TokenizerDirectory.read(directory)
        if "eos_token" not in read.named_tokens:
            raise DataError(
                f"{directory} names no token that ends a text\n"
                "  -> put a tokenizer_config.json with an eos_token there, as transformers' save_pretrained writes it"
            )
        # Imported only now: no rank that measures its own model needs it.
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=read.tokenizer,
            **read.named_tokens,
            chat_template=read.chat_template,
            clean_up_tokenization_spaces=read.cleans_up_spaces,
        )
        template = hashlib.sha256((read.chat_template or "").encode()).hexdigest()[:16]
        return cls(tokenizer, f"sha256:{read.fingerprint}/{template}")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; names of special tokens in it become those tokens, as in its templates."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """Return how a token is written."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as the model was trained on it."""
        return self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

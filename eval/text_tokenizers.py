"""The tokenizers that models are evaluated with: the one a run was trained with, or a Hugging Face directory's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerFast

from eval.data import Tokenizer
from training.data.tokenizer import EOS_TOKEN
from training.errors import DataError
from training.plain_files import read_json, read_text

_SPECIAL_TOKENS = ("bos_token", "unk_token", "pad_token")
"""That templates may name."""


class RunTokenizer:
    """A run's own; it knows no conversations, so they are written as plain text."""

    chat_template = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.name = f"sha256:{tokenizer.fingerprint}"
        self.eos_id = tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return list(self._tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return self._tokenizer.decode(token_ids)

    def spelled(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens by their names."""
        return self._tokenizer.decode(token_ids)  # its one special token ends a text, and is in none

    def token_text(self, token_id: int) -> str:
        """Return how a token is written; of the end of a text, its name."""
        return EOS_TOKEN if token_id == self.eos_id else self._tokenizer.decode([token_id])

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as lines "role: content"."""
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return "".join(lines) + ("assistant:" if add_generation_prompt else "")


class HuggingFaceTokenizer:
    """A Hugging Face directory's tokenizer and chat template; no code of the directory runs, nothing is fetched."""

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
        try:
            settings = read_json(directory / "tokenizer_config.json")
            template_file = directory / "chat_template.jinja"
            template = read_text(template_file) if template_file.exists() else settings.get("chat_template")
            if isinstance(template, list):  # of several, the one that is called so
                template = {one["name"]: one["template"] for one in template}["default"]
            special = {name: _text(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)}
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=str(directory / "tokenizer.json"),
                **{"eos_token": _text(settings["eos_token"])} | special,
                chat_template=template,
                clean_up_tokenization_spaces=settings.get("clean_up_tokenization_spaces", False),
            )
            digest = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
        except Exception as error:  # tokenizers raises nothing narrower for a file it cannot parse
            raise DataError(
                f"{directory} holds no tokenizer that can be read ({type(error).__name__}: {error})\n"
                "  -> put tokenizer.json and a tokenizer_config.json that names an eos_token there"
            ) from error
        return cls(tokenizer, f"sha256:{digest}/{hashlib.sha256((template or '').encode()).hexdigest()[:16]}")

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


def _text(token: Any) -> str:
    """Return how a special token is written; it is a text, or an object that holds one."""
    return token["content"] if isinstance(token, dict) else token

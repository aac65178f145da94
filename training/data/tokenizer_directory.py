"""A tokenizer's directory as Hugging Face writes it: tokenizer.json, tokenizer_config.json, chat_template.jinja."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tokenizers

from training.errors import DataError
from training.plain_files import read_json, read_text

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""That chat templates may name."""
_LARGEST_BYTES = 100_000_000
"""Of a tokenizer; that of the largest vocabularies has a third of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDirectory:
    """What the files say; no code of the directory runs, nothing is fetched."""

    directory: Path
    tokenizer: tokenizers.Tokenizer
    """Special tokens in a text that it splits become those tokens."""
    named_tokens: dict[str, str]
    """eos_token and the like -> how the token is written; those that are named."""
    chat_template: str | None
    """Jinja text; None if there is none."""
    cleans_up_spaces: bool
    """Whether decoding takes out spaces before punctuation, as old tokenizers do."""
    fingerprint: str
    """sha256 of tokenizer.json."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the tokenizer of a directory.

        Raises:
            DataError: there is none that can be read.
        """
        try:
            text = read_text(directory / TOKENIZER_FILE, largest_bytes=_LARGEST_BYTES)
            settings = read_json(directory / SETTINGS_FILE) if (directory / SETTINGS_FILE).exists() else {}
            return cls(
                directory=directory,
                tokenizer=tokenizers.Tokenizer.from_str(text),
                named_tokens={name: _text(settings[name]) for name in _NAMED_TOKENS if settings.get(name)},
                chat_template=_template(directory, settings),
                cleans_up_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
                fingerprint=hashlib.sha256(text.encode()).hexdigest(),
            )
        except BaseException as error:  # tokenizers raises nothing narrower for a file it cannot parse
            # A panic of its Rust code is no Exception, and its class cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(
                f"{directory} holds no tokenizer that can be read ({type(error).__name__}: {error})\n"
                f"  -> put {TOKENIZER_FILE} there, and {SETTINGS_FILE} as transformers' save_pretrained writes it"
            ) from error


def _template(directory: Path, settings: dict[str, Any]) -> str | None:
    file = directory / TEMPLATE_FILE
    template = read_text(file) if file.exists() else settings.get("chat_template")
    if isinstance(template, list):  # of several, the one that is called so
        template = {one["name"]: one["template"] for one in template}["default"]
    return template


def _text(token: Any) -> str:
    """Return how a special token is written; it is a text, or an object that holds one."""
    return token["content"] if isinstance(token, dict) else token

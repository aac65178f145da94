"""Multiple choice where no log-probability is to be had: the options are listed and the model names a letter.

Another measurement than comparing log-likelihoods, and usually a higher number: only for models asked in the same way.
"""

import hashlib
import re
import string
from dataclasses import dataclass

_ANSWER = re.compile(r"(?:\banswer\b(?:\s+is)?\s*:?\s*|^)[\s(*\"'`\[]*([A-Za-z])(?![A-Za-z'])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question as it is put."""

    context: str
    options: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        listed = "\n".join(
            f"{letter}. {option.strip()}" for letter, option in zip(string.ascii_uppercase, self.options, strict=False)
        )
        return f"{self.context.rstrip()}\n\n{listed}\n\nReply with the letter of the right option and nothing else."

    def chosen(self, answer: str) -> int | None:
        """Return the number of the option that an answer names; None if it names none, or several."""
        texts = [option.strip().casefold() for option in self.options]
        said = answer.strip().strip(".").casefold()
        if texts.count(said) == 1:
            return texts.index(said)
        letters = {match.upper() for match in _ANSWER.findall(answer.strip())}
        named = [string.ascii_uppercase.index(letter) for letter in letters]
        return named[0] if len(named) == 1 and named[0] < len(self.options) else None

    def guess(self) -> int:
        """Return the option to take where none is named: one by chance, the same every time."""
        text = "\n".join([self.context, *self.options])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % len(self.options)


LARGEST_NUM_OPTIONS = len(string.ascii_uppercase)


def scores(question: Question, answer: str) -> tuple[list[float], bool]:
    """Return a log-likelihood per option, 0 for the one taken and minus infinity else; and whether it was named."""
    named = question.chosen(answer)
    taken = question.guess() if named is None else named
    return [0.0 if i == taken else float("-inf") for i in range(len(question.options))], named is not None

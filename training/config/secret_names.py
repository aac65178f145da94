"""What looks like a secret: the one place that knows, for configs, command lines and environments alike."""

import re

_WORDS = r"API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET_?KEY|KEY|TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?|CREDENTIALS?"
_KEY = re.compile(rf"(?:.*[._-])?(?:{_WORDS})", re.IGNORECASE)
_VARIABLE = re.compile(
    rf"(?:.*_)?(?:{_WORDS}|AUTH)(?:_.*)?|.*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE
)
_USER_IN_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@\s]*:[^/@\s]*@")


def is_secret_key(key: str) -> bool:
    """Return whether a key of a config has the name of a secret; tokenizer and key_size have not."""
    return _KEY.fullmatch(key) is not None


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable's name says that its value is nobody else's business."""
    return _VARIABLE.fullmatch(name) is not None


def has_password(text: str) -> bool:
    """Return whether there is an address with a user's password in a text."""
    return _USER_IN_ADDRESS.search(text) is not None


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable must not be shown, written or put on a command line."""
    return is_secret_variable(name) or has_password(value)

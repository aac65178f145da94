from pathlib import Path
from typing import Any

import pytest

from eval.endpoint.config import Api, EndpointConfig
from training.errors import ConfigError


def config(**values: Any) -> EndpointConfig:
    known: dict[str, Any] = {
        "base_url": "https://api.partner.example/v1",
        "model": "theirs",
        "journal": Path("j.jsonl"),
    }
    return EndpointConfig(**known | values)


def test_the_address_follows_from_the_interface() -> None:
    assert config().url == "https://api.partner.example/v1/chat/completions"
    assert config(api=Api.completions, base_url="https://a.b/v1/").url == "https://a.b/v1/completions"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:80", "127.8.9.1"])
def test_plain_http_is_allowed_on_this_machine(host: str) -> None:
    assert config(base_url=f"http://{host}/v1").is_loopback


def test_plain_http_elsewhere_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="allow_http=true"):
        config(base_url="http://10.0.0.7/v1")
    assert not config(base_url="http://10.0.0.7/v1", allow_http=True).is_loopback
    with pytest.raises(ConfigError, match="allow_http=true"):
        config(base_url="http://127.0.0.1.partner.example/v1")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_url": "https://user:pw@a.b/v1"}, "has a password"),
        ({"base_url": "ftp://a.b/v1"}, "no address"),
        ({"base_url": "https://a.b/v1?key=1"}, "no address"),
        ({"model": " "}, "is empty"),
        ({"concurrency": 0}, "concurrency=1 works"),
        ({"max_retries": -1}, "max_retries=0 works"),
        ({"timeout_seconds": 0.0}, "must be above 0"),
        ({"requests_per_minute": float("nan")}, "not a finite number"),
        ({"price_per_million_input_tokens": 1.0}, "needs both prices"),
        ({"max_cost": 5.0}, "no price is known"),
        ({"prefix_text": "<s>"}, "score no text"),
        ({"multiple_choice_by_letter": True, "api": Api.completions}, "scores the answers themselves"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        config(**values)
    assert "\n  -> " in str(refused.value)
    assert "pw" not in str(refused.value)


def test_the_key_comes_from_the_environment_only() -> None:
    named = config(key_env="PARTNER_KEY")
    assert named.key({"PARTNER_KEY": " sk-123 "}) == "sk-123"
    assert config().key({"PARTNER_KEY": "sk-123"}) is None
    with pytest.raises(ConfigError, match="export PARTNER_KEY"):
        named.key({})
    with pytest.raises(ConfigError) as refused:
        named.key({"PARTNER_KEY": "sk-1\n23"})
    assert "sk-1" not in str(refused.value)

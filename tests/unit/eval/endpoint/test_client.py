import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.endpoint.budget import BudgetSpent
from eval.endpoint.client import AnswerMissing, Client, RequestFailed
from eval.endpoint.config import EndpointConfig
from eval.endpoint.request import Request
from eval.endpoint.sending import retry_after_seconds
from tests.unit.eval.endpoint.scripted_server import Reply, Scripted, answer, scripted_server
from training.errors import ExitCode

KEY = "sk-do-not-tell-4711"


def config(server: Scripted, tmp_path: Path, **values: Any) -> EndpointConfig:
    known: dict[str, Any] = {"base_url": server.url, "model": "m", "journal": tmp_path / "journal.jsonl"}
    return EndpointConfig(**known | {"backoff_seconds": 0.01, "timeout_seconds": 20.0, "max_retries": 3} | values)


@contextlib.contextmanager
def client(server: Scripted, tmp_path: Path, **values: Any) -> Iterator[Client]:
    opened = Client(config(server, tmp_path, **values))
    try:
        yield opened
    finally:
        opened.close()


def asked(*texts: str) -> list[Request]:
    return [
        Request(body={"model": "m", "messages": [{"role": "user", "content": text}]}, max_output_tokens=2, task="t")
        for text in texts
    ]


def echo(body: dict[str, Any], _number: int) -> Reply:
    return answer(body["messages"][0]["content"].upper())


def texts(answers: list[Any]) -> list[str]:
    return [found.response["choices"][0]["message"]["content"] for found in answers]


def test_answers_come_in_order_and_each_question_is_asked_once(tmp_path: Path) -> None:
    names = [f"q{i % 7}" for i in range(20)]
    with scripted_server(echo) as server:
        with client(server, tmp_path) as first:
            assert texts(first.ask(asked(*names))) == [name.upper() for name in names]
            assert texts(first.ask(asked("q3"))) == ["Q3"]
            assert first.usage().answers == 7
        with client(server, tmp_path) as again:
            assert texts(again.ask(asked(*names))) == [name.upper() for name in names]
            assert again.usage().input_tokens == 21
    assert len(server.bodies) == 7


def test_a_replay_needs_no_server(tmp_path: Path) -> None:
    with scripted_server(echo) as server, client(server, tmp_path) as first:
        first.ask(asked("a", "b"))
    with client(server, tmp_path, offline=True, key_env="NOBODY_SET_THIS") as replay:
        assert texts(replay.ask(asked("b", "a"))) == ["B", "A"]
        with pytest.raises(
            AnswerMissing, match=r'no answer to 1 of the requests; the first is .*"c".* of task t, key '
        ):
            replay.ask(asked("a", "c"))


@pytest.mark.parametrize(
    ("fault", "possibly_billed"),
    [
        ((429, {"retry-after": "0"}, b"slow down"), 0),
        ((500, {}, b"oops"), 0),
        ((503, {"retry-after": "0.01"}, b""), 0),
        ((502, {}, b"the server behind is gone"), 2),
        ((504, {}, b""), 2),
        ((200, {}, b"<html>"), 2),
        ((200, {}, b'{"error": {"message": "overloaded"}}'), 2),
        ((200, {"content-length": "500"}, b'{"choices": ['), 2),
        (None, 2),
    ],
)
def test_what_passes_is_tried_again_and_what_may_be_billed_is_counted(
    tmp_path: Path, fault: Reply | None, possibly_billed: int
) -> None:
    timeout = {"timeout_seconds": 1.0} if fault and fault[1].get("content-length") else {}
    with (
        scripted_server(lambda body, number: fault if number < 2 else echo(body, number)) as server,
        client(server, tmp_path, **timeout) as asking,
    ):
        assert texts(asking.ask(asked("a"))) == ["A"]
        assert asking.possibly_billed == possibly_billed
    assert len(server.bodies) == 3


def test_a_server_that_stays_broken_is_given_up_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    with scripted_server(lambda body, n: (500, {}, b"oops") if n else echo(body, n)) as server:
        with client(server, tmp_path, concurrency=1) as asking:
            with pytest.raises(RequestFailed, match=r"\(sent 4 times\): status 500 .*oops\n  -> start again") as failed:
                asking.ask(asked("a", "b", "c"))
            assert failed.value.exit_code is ExitCode.ENDPOINT
        assert len(server.bodies) == 5
        with client(server, tmp_path, offline=True) as replay:
            assert texts(replay.ask(asked("a"))) == ["A"]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_refusal_that_will_not_pass_fails_at_once_in_the_servers_words(tmp_path: Path, status: int) -> None:
    def refuse(_body: dict[str, Any], _number: int) -> Reply:
        return status, {"location": "http://127.0.0.1:9/"}, b'{"error": "the model   m is unknown"}'

    with scripted_server(refuse) as server, client(server, tmp_path) as asking:
        with pytest.raises(RequestFailed, match=rf"\(sent once\): status {status} .*the model m is unknown"):
            asking.ask(asked("a"))
        assert asking.possibly_billed == 0
    assert len(server.bodies) == 1


def test_no_waiting_helps_without_money(tmp_path: Path) -> None:
    spent = (429, {}, b'{"error": {"code": "insufficient_quota"}}')
    with (
        scripted_server(lambda *_: spent) as server,
        client(server, tmp_path) as asking,
        pytest.raises(RequestFailed, match="sent once"),
    ):
        asking.ask(asked("a"))


def test_a_server_that_does_not_listen_is_no_bill(tmp_path: Path) -> None:
    with scripted_server(echo) as server:
        pass
    with client(server, tmp_path, max_retries=1) as asking:
        with pytest.raises(RequestFailed, match=r"\(sent 2 times\): no connection"):
            asking.ask(asked("a"))
        assert asking.possibly_billed == 0


def test_an_answer_that_does_not_come_in_time_is_given_up(tmp_path: Path) -> None:
    leave = threading.Event()

    def late(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            leave.wait(60)
        return echo(body, number)

    with scripted_server(late) as server, client(server, tmp_path, timeout_seconds=0.3) as asking:
        assert texts(asking.ask(asked("a"))) == ["A"]
        assert asking.possibly_billed == 1
        leave.set()


def test_a_wait_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    busy = (429, {"retry-after": "3600"}, b"come back later")
    with (
        scripted_server(lambda *_: busy) as server,
        client(server, tmp_path) as asking,
        pytest.raises(RequestFailed, match=r"asks to wait 3,600 seconds .* max_wait_seconds is 120: .*come back later"),
    ):
        asking.ask(asked("a"))


def test_the_budget_stops_before_it_is_exceeded_and_holds_over_restarts(tmp_path: Path) -> None:
    prices = {"price_per_million_input_tokens": 1e6, "price_per_million_output_tokens": 1e6}
    many = asked(*(f"q{i}" for i in range(30)))
    most = many[0].most_input_tokens + 2
    with scripted_server(echo) as server:
        for _ in range(3):
            with client(server, tmp_path, max_cost=most + 52.0, **prices) as asking:
                with pytest.raises(BudgetSpent, match="it was not sent"):
                    asking.ask(many)
                assert sum(found.tokens[0] for found in asking.journal.answers.values() if found.tokens) <= most + 52
    assert len(server.bodies) == 11, "the eleventh had room for the most it could take, and each took 5"


def test_what_the_server_does_not_count_is_taken_at_its_most(tmp_path: Path) -> None:
    def uncounted(_body: dict[str, Any], _number: int) -> Reply:
        return answer("A", usage=None)

    (one,) = asked("a")
    with (
        scripted_server(uncounted) as server,
        client(server, tmp_path, max_tokens_total=2 * (one.most_input_tokens + 2), concurrency=1) as asking,
    ):
        with pytest.raises(BudgetSpent):
            asking.ask(asked("a", "b", "c"))
        assert len(asking.journal.answers) == 2


def test_the_key_is_sent_and_appears_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even if the server repeats it, with all loggers at their most talkative."""
    monkeypatch.setenv("PARTNER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    leak = (500, {}, f"internal error for Bearer {KEY}".encode())
    with (
        scripted_server(lambda body, n: leak if n != 1 else echo(body, n)) as server,
        client(server, tmp_path, key_env="PARTNER_KEY", concurrency=1) as asking,
    ):
        asking.ask(asked("a"))
        with pytest.raises(RequestFailed) as failed:
            asking.ask(asked("b"))
        shown = [str(failed.value), repr(failed.value), repr(asking.config), repr(asking.usage()), repr(vars(asking))]
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
    written = [path.read_text() for path in tmp_path.iterdir()]
    said = capfd.readouterr()
    assert "(the API key)" in str(failed.value)
    for text in [*shown, *written, caplog.text, said.out, said.err]:
        assert KEY not in text


def test_the_rate_limit_is_kept(tmp_path: Path) -> None:
    """Only that waits happen and in which order; how long they are is tested with a clock of its own."""
    with scripted_server(echo) as server, client(server, tmp_path, requests_per_minute=1200.0, concurrency=4) as asking:
        found = asking.ask(asked(*(f"q{i}" for i in range(5))))
        began = sorted(each.time - each.seconds for each in found)
    assert began[-1] - began[0] >= 4 * 0.05 - 0.02


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 50.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, now=10.0) == seconds

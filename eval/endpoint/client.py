"""Many requests at a time to one endpoint, each answered once: from the journal, or over HTTP and into the journal."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from eval.endpoint.budget import Budget, Prices
from eval.endpoint.config import EndpointConfig
from eval.endpoint.journal import Answered, Journal
from eval.endpoint.rate_limit import RateLimit
from eval.endpoint.request import Request, canonical
from eval.endpoint.sending import Refusal, Sender
from eval.endpoint.usage import Usage, usage_of, usage_per_task
from training.errors import EndpointError

_SHOWN_CHARACTERS = 120


class AnswerMissing(EndpointError):
    """An answer is not in the journal, and nothing may be asked."""


class RequestFailed(EndpointError):
    """The endpoint does not answer a request."""


class _Ended(Exception):
    """Another request failed: nothing more is sent."""


class Client:
    """Asks an endpoint. One at a time per journal; `close` it.

    Args:
        config: of the endpoint.

    Raises:
        ConfigError: the API key is not there.
        DataError, RunInUse, StorageError: the journal cannot be used.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        if not config.offline:
            config.key()  # that it is there; it is read again where it is sent, and kept nowhere
        self.prices = _prices(config)
        self.journal = Journal(config.journal, read_only=config.offline)
        self._used: dict[str, Answered] = {}
        self._budget = Budget(prices=self.prices, max_cost=config.max_cost, max_tokens=config.max_tokens_total)
        self._budget.settle((0, 0), _spent(self.journal))
        self._rate = RateLimit(
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            clock=time.monotonic,
        )

    def ask(self, requests: Sequence[Request]) -> list[Answered]:
        """Return the answer to each request, in order; what is in the journal is not asked again.

        Raises:
            AnswerMissing: the endpoint is offline, and one is not in the journal.
            BudgetSpent: the next one could cost more than is left.
            RequestFailed: one is refused, or not answered however often it was sent.
            StorageError: the journal cannot be written.
        """
        keys = [request.key(self.config.url) for request in requests]
        missing = {key: r for key, r in zip(keys, requests, strict=True) if key not in self.journal.answers}
        if missing and self.config.offline:
            raise self._absent(missing)
        if missing:
            self._send_all(missing)
        answers = [self.journal.answers[key] for key in keys]
        self._used |= zip(keys, answers, strict=True)
        return answers

    def usage(self) -> Usage:
        """Return what the answers took that this client has given, whenever they were paid for."""
        return usage_of(self._used.values(), self.prices)

    def usage_per_task(self) -> dict[str, Usage]:
        """Return the same by the task that first asked."""
        return usage_per_task(self._used.values(), self.prices)

    @property
    def possibly_billed(self) -> int:
        """Attempts of the whole journal that have no answer and that the provider may have billed."""
        return len(self.journal.possibly_billed)

    def close(self) -> None:
        """Let another process have the journal."""
        self.journal.close()

    def _send_all(self, missing: dict[str, Request]) -> None:
        """Send until all are answered or one fails; those under way then are still waited for: they are paid."""
        stop = threading.Event()
        with Sender(self.config, self.config.key()) as sender, ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(self._send_or_stop, sender, key, request, stop) for key, request in missing.items()]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # also for Ctrl-C
                pool.shutdown(cancel_futures=True)
        errors = [error for future in done if (error := future.exception()) and not isinstance(error, _Ended)]
        if errors:
            raise errors[0]

    def _send_or_stop(self, sender: Sender, key: str, request: Request, stop: threading.Event) -> None:
        if stop.is_set():
            raise _Ended
        try:
            self._send(sender, key, request, stop)
        except BaseException:
            stop.set()  # before this thread takes the next request
            raise

    def _send(self, sender: Sender, key: str, request: Request, stop: threading.Event) -> None:
        """Send one request until it is answered."""
        most = (request.most_input_tokens, request.max_output_tokens)
        draw = random.Random(key)
        for attempt in range(self.config.max_retries + 1):
            self._budget.promise(*most, should_stop=stop.is_set)
            spent = (0, 0)
            try:
                if stop.wait(self._rate.take(sum(most))):
                    raise _Ended
                answer = self._attempt(sender, key, request)
                if isinstance(answer, Answered):
                    spent = answer.tokens or most
                    return
                spent = most if answer.may_be_billed else (0, 0)
            finally:
                self._budget.settle(most, spent)
                self._rate.give_back(sum(most) - sum(spent))
            if answer.is_final or attempt == self.config.max_retries:
                raise self._failure(request, answer, attempt + 1)
            seconds = self._pause_seconds(request, answer, attempt, draw)
            if answer.too_many:
                self._rate.hold(seconds)
            if stop.wait(seconds):
                raise _Ended

    def _attempt(self, sender: Sender, key: str, request: Request) -> Answered | Refusal:
        number = self.journal.write_sent(
            key,
            task=request.task,
            url=self.config.url,
            body=request.body,
            try_number=request.try_number,
            most_input_tokens=request.most_input_tokens,
            max_output_tokens=request.max_output_tokens,
        )
        began = time.monotonic()
        response = sender.post(request.body)
        if isinstance(response, Refusal):
            self.journal.write_failed(number, response.reason, may_be_billed=response.may_be_billed)
            return response
        return self.journal.write_answered(number, response, seconds=time.monotonic() - began)

    def _pause_seconds(self, request: Request, refusal: Refusal, attempt: int, draw: random.Random) -> float:
        """Return what the server asks for, else a random part of a wait that doubles: all do not come back at once."""
        asked = refusal.retry_after_seconds
        if asked is None:
            return draw.uniform(0.0, min(self.config.max_wait_seconds, self.config.backoff_seconds * 2**attempt))
        if asked > self.config.max_wait_seconds:
            raise RequestFailed(
                f"{self.config.url} asks to wait {asked:,.0f} seconds (Retry-After), and max_wait_seconds is "
                f"{self.config.max_wait_seconds:g}: {refusal.reason}\n"
                "  -> raise max_wait_seconds, or start again later; every answer so far is kept"
            )
        return asked

    def _failure(self, request: Request, refusal: Refusal, attempts: int) -> RequestFailed:
        if refusal.is_final:
            remedy = "mend what the server names and start again; every answer so far is kept and not paid for twice"
        else:
            remedy = "start again when it answers, perhaps with fewer requests at a time or a longer timeout_seconds; "
            remedy += "every answer so far is kept and not paid for twice"
        times = "once" if attempts == 1 else f"{attempts} times"
        return RequestFailed(
            f"{self.config.url} does not answer {_described(request)} (sent {times}): {refusal.reason}\n  -> {remedy}"
        )

    def _absent(self, missing: dict[str, Request]) -> AnswerMissing:
        key, request = next(iter(missing.items()))
        return AnswerMissing(
            f"offline, and {self.config.journal} has no answer to {len(missing):,} of the requests; the first is "
            f"{_described(request)}, key {key}\n"
            "  -> run once with offline=false, or use the journal of the run that is to be replayed, with the same "
            "model, address and tasks"
        )


def _prices(config: EndpointConfig) -> Prices | None:
    if config.price_per_million_input_tokens is None or config.price_per_million_output_tokens is None:
        return None
    return Prices(
        per_million_input_tokens=config.price_per_million_input_tokens,
        per_million_output_tokens=config.price_per_million_output_tokens,
    )


def _spent(journal: Journal) -> tuple[int, int]:
    """Return the tokens of a journal: as counted, and at their most where the server did not say."""
    tokens = [answer.tokens or (0, 0) for answer in journal.answers.values()]
    tokens += [(sent.most_input_tokens, sent.max_output_tokens) for sent in journal.uncounted + journal.possibly_billed]
    return sum(pair[0] for pair in tokens), sum(pair[1] for pair in tokens)


def _described(request: Request) -> str:
    text = canonical(request.body.get("messages", request.body.get("prompt")))
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"{shown} of task {request.task}" if request.task else shown

"""Rank 0 evaluates; all ranks compute. What a task does between two calls of the model happens on rank 0 alone.

Tasks are other people's code: they parse, compare, run programs. So they have a thread of their own on rank 0, and ask
for the model through it. If that code fails or hangs, the evaluation ends on every rank alike, and the run is unharmed.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from eval.lm import EngineLM
from eval.requests import Continuation, Prompt, ScoredContinuation, to_plain
from training.errors import EvaluationFailed

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

_SCORE, _GENERATE, _WAIT, _DONE, _FAILED = "score", "generate", "wait", "done", "failed"
PATIENCE_SECONDS = 5.0
"""How long the other ranks wait for rank 0's next order before they are told that it is still busy."""


class TokenModel(Protocol):
    """A model over tokens, as tasks see it."""

    def score(self, continuations: Sequence[Continuation], /) -> list[ScoredContinuation]:
        """Return the score of each continuation, in order."""
        ...

    def generate(self, prompts: Sequence[Prompt], /) -> list[list[int]]:
        """Return the tokens that follow each prompt, in order."""
        ...


class Ranks(Protocol):
    """The part of `training.engine.process_group.ProcessGroup` that is used here."""

    @property
    def rank(self) -> int:
        """Of this process."""
        ...

    def broadcast_text(self, text: str | None, /) -> str:
        """Return rank 0's text on every rank."""
        ...


@dataclass(kw_only=True, slots=True)
class _Order:
    """Something that rank 0's tasks want of the model, or say."""

    what: str
    requests: Sequence[Any] = ()
    text: str = ""
    answer: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)


class Conducted:
    """What the work gets as a model: it lets all ranks compute, and waits."""

    def __init__(self, orders: "queue.SimpleQueue[_Order]") -> None:
        self._orders = orders

    def score(self, continuations: Sequence[Continuation], /) -> list[ScoredContinuation]:
        """Return the score of each continuation, in order."""
        return self._ask(_Order(what=_SCORE, requests=continuations)) if continuations else []

    def generate(self, prompts: Sequence[Prompt], /) -> list[list[int]]:
        """Return the tokens that follow each prompt, in order."""
        return self._ask(_Order(what=_GENERATE, requests=prompts)) if prompts else []

    def keep_alive(self) -> None:
        """Say that the work goes on, though it asks for nothing.

        Raises:
            Stopped: the run was told to stop.
        """
        self._ask(_Order(what=_WAIT))

    def _ask(self, order: _Order) -> Any:
        self._orders.put(order)
        answer = order.answer.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Work(threading.Thread, Generic[T]):
    """Rank 0's part of an evaluation. A daemon: whatever it hangs in ends with the process."""

    def __init__(self, work: Callable[[Conducted], T]) -> None:
        super().__init__(name="evaluation", daemon=True)
        self.orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self.results: list[T] = []
        self.error: BaseException | None = None
        self._work = work

    def run(self) -> None:
        """Do the work; its last order says how it ended."""
        try:
            self.results.append(self._work(Conducted(self.orders)))
            self.orders.put(_Order(what=_DONE))
        except BaseException as error:  # other people's code, which may call sys.exit: every rank is told
            _LOG.error("an evaluation failed", exc_info=error)
            self.error = error
            self.orders.put(_Order(what=_FAILED, text=f"{type(error).__name__}: {error}"))


def conduct(lm: EngineLM, ranks: Ranks, work: Callable[[Conducted], T], *, silent_seconds: float) -> T | None:
    """Return what the work comes to on rank 0, None on the others; collective.

    Args:
        lm: the model, on every rank.
        ranks: all ranks.
        work: is called on rank 0, in a thread of its own.
        silent_seconds: after so long without a call of the model, or a word that it goes on, the work is given up.

    Raises:
        EvaluationFailed: on every rank: the work failed, or was given up.
        AutarkyError: on every rank: whatever ended a call of the model (the run was told to stop).
    """
    if ranks.rank > 0:
        _follow(lm, ranks)
        return None
    thread = _Work(work)
    thread.start()
    silent = 0.0
    while True:
        try:
            order = thread.orders.get(timeout=PATIENCE_SECONDS)
            silent = 0.0
        except queue.Empty:
            silent += PATIENCE_SECONDS
            order = _Order(what=_WAIT)
            if silent >= silent_seconds:
                order = _Order(what=_FAILED, text=f"a task did not ask the model for {silent:.0f} s: it was given up")
        try:
            text = _text(order)
        except (TypeError, ValueError) as error:  # a request that is none: the others wait, and have to be told
            order.answer.put(error)
            order = _Order(what=_FAILED, text=f"a task asked for what cannot be sent: {error}")
            text = _text(order)
        ranks.broadcast_text(text)
        if order.what == _DONE:
            return thread.results[0]
        try:
            answer = _carry_out(lm, order.what, order.requests, order.text)
        except Exception as error:
            order.answer.put(error)  # the thread waits for it, if it asked
            if isinstance(error, EvaluationFailed) and thread.error is not None:
                raise error from thread.error
            raise
        order.answer.put(answer)


def _text(order: _Order) -> str:
    return json.dumps({"what": order.what, "text": order.text, "requests": [to_plain(r) for r in order.requests]})


def _follow(lm: EngineLM, ranks: Ranks) -> None:
    """Compute what rank 0 asks for, until it is done."""
    while True:
        order = json.loads(ranks.broadcast_text(None))
        if order["what"] == _DONE:
            return
        kind = Continuation if order["what"] == _SCORE else Prompt
        _carry_out(lm, order["what"], [kind(**_fields(request)) for request in order["requests"]], order["text"])


def _fields(request: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if name == "stop" else value for name, value in request.items()}


def _carry_out(lm: EngineLM, what: str, requests: Sequence[Any], text: str) -> Any:
    match what:
        case "score":
            return lm.score(requests)
        case "generate":
            return lm.generate(requests)
        case "wait":
            return lm.engine.keep_alive()
    raise EvaluationFailed(text)

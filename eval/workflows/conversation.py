"""One try at one task: a conversation that goes on from each answer of the model to the next question to it."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from eval.function_calls import parse_calls
from eval.workflows.calls import safe_call
from eval.workflows.chat import Message
from eval.workflows.simulator import CallFailed, Systems
from eval.workflows.tasks import WorkflowTask
from training.data.call_text import instructions, listed

MAXIMUM_STEPS = 20
"""Answers with calls in one turn; a model that makes yet another one has failed. Source: MAXIMUM_STEP_LIMIT of
bfcl-eval 2026.3.23, constants/default_prompts.py."""

_MANY_TURNS = (
    "\n\nIn each turn, do all that the user asks for. You get the result of each call and can then make further calls. "
    "When nothing remains to be called, answer without a call; the user then goes on."
)
_OF_SYSTEM = "Tool description: "
"""What stands in a description between words about the whole system and those about the function."""
_MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"


class Conversation:
    """One try at one task."""

    def __init__(self, task: WorkflowTask, systems: Systems, *, compact: bool = False) -> None:
        """Begin with the user's first message.

        Args:
            task: what the user wants.
            systems: run the calls.
            compact: functions are shown by a line each, not by their schemas.
        """
        self.task = task
        self._compact = compact
        told = instructions(self._shown(task.shown_at_first), compact=compact) + _MANY_TURNS
        self.messages: list[Message] = [{"role": "system", "content": told}]
        """All messages so far; the last one is the user's or a tool's as long as the conversation goes on."""
        self.done = False
        self.fault: str | None = None
        """Why the task is not solved; None where it is."""
        self.num_answers = 0
        self.num_calls = 0
        """Calls that were run."""
        self.num_refused_calls = 0
        """Calls of functions that there are not, or with arguments that are no literals."""
        self._systems = systems
        self._turns: list[list[list[str]]] = []
        self._steps_in_turn = 0
        self._next_turn()

    def take(self, answer: str) -> None:
        """Go on from an answer of the model: with the results of its calls or, without calls, with the next turn."""
        self.messages.append({"role": "assistant", "content": answer})
        self.num_answers += 1
        try:
            if calls := parse_calls(answer):
                self._steps_in_turn += 1
                if self._steps_in_turn > MAXIMUM_STEPS:
                    self._end(f"it went on calling after {MAXIMUM_STEPS} steps of turn {len(self._turns)}")
                    return
                self._run(calls)
            elif len(self._turns) < len(self.task.turns):
                self._next_turn()
            else:
                self._end(self._systems.fault(self.task, self._turns))
        except CallFailed as error:
            self._end(str(error))

    @property
    def num_turns(self) -> int:
        """Turns of the user that were begun."""
        return len(self._turns)

    def _run(self, calls: list[ast.Call]) -> None:
        results: list[str | None] = []
        step: list[str] = []
        for call in calls:
            try:
                step.append(safe_call(call, self.task.schemas))
                results.append(None)
            except ValueError as error:
                results.append(f"Error during execution: {error}")
                self.num_refused_calls += 1
        if step:
            self._turns[-1].append(step)
            self.num_calls += len(step)
            returned = iter(self._systems.execute(self.task, self._turns))
            results = [next(returned) if result is None else result for result in results]
        for result in results:
            # Half a surrogate pair, which a model can write as an escape, is nothing a tokenizer takes.
            content = str(result).encode("utf-8", "replace").decode("utf-8")
            self.messages.append({"role": "tool", "content": content})

    def _next_turn(self) -> None:
        turn = len(self._turns)
        self._turns.append([])
        self._steps_in_turn = 0
        if shown := self.task.shown_in(turn):
            more = f"{listed(self._shown(shown), compact=self._compact)}\n{_MORE_FUNCTIONS}"
            self.messages.append({"role": "user", "content": more})
        for message in self.task.turns[turn]:
            self.messages.append({"role": "user", "content": message})

    def _shown(self, schemas: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return schemas as they are or, compact, without what they say of the whole system each time."""
        if not self._compact:
            return schemas
        return [{**s, "description": str(s["description"]).rpartition(_OF_SYSTEM)[2]} for s in schemas]

    def _end(self, fault: str | None) -> None:
        self.done, self.fault = True, fault

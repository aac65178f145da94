"""Models of conversations that answer by a script: the right calls, others, or none."""

from collections.abc import Callable, Sequence

from eval.workflows.chat import Message
from eval.workflows.tasks import WorkflowTask

Script = Callable[[WorkflowTask, int, bool], str]
"""Task, turn, whether results of calls came last -> answer."""


class ScriptedModel:
    """A ChatModel that answers by a script; it knows its conversations by the lists that they are kept in."""

    def __init__(self, tasks: Sequence[WorkflowTask], script: Script) -> None:
        self._tasks, self._script = tasks, script
        self._of: dict[int, WorkflowTask] = {}
        self.batches: list[int] = []
        self.seeds: list[int] = []

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[str]:
        if not self._of:
            each = len(conversations) // len(self._tasks)
            tasks = [task for task in self._tasks for _ in range(each)]
            self._of = {id(messages): task for messages, task in zip(conversations, tasks, strict=True)}
        self.batches.append(len(conversations))
        self.seeds += seeds
        return [
            self._script(
                self._of[id(messages)],
                sum(message["role"] == "assistant" and "[" not in message["content"] for message in messages),
                messages[-1]["role"] == "tool",
            )
            for messages in conversations
        ]


def gold(task: WorkflowTask, turn: int, called: bool) -> str:
    calls = task.answer[turn]
    return "All done." if called or not calls else f"[{', '.join(calls)}]"


def silent(task: WorkflowTask, turn: int, called: bool) -> str:
    return "I cannot do that."


def other_calls(task: WorkflowTask, turn: int, called: bool) -> str:
    """Call what is never asked for, if something is."""
    name = next(name for name, schema in task.schemas.items() if not schema["parameters"].get("required"))
    return "All done." if called or not task.answer[turn] else f"[{name}()]"


def endless(task: WorkflowTask, turn: int, called: bool) -> str:
    return f"[{next(iter(task.schemas))}()]"

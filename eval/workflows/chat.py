"""What a workflow asks of a model, and lm_eval's models doing it."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class Message(TypedDict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ChatModel(Protocol):
    """A model that answers conversations."""

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[str]:
        """Return the assistant's next message of every conversation, in order.

        Args:
            conversations: each ends with a message of the user or of tools.
            max_new_tokens: at most so many tokens in each answer.
            temperature: 0 takes the likeliest token each time.
            seeds: one for each conversation; the same one gives the same answer again. Without meaning at 0.
        """
        ...


class LMChat:
    """A ChatModel of any lm_eval model.

    With a chat template, the model's own; else in plain text, each message as `Role: content` with an empty line after
    it, and `Assistant:` at the end.
    """

    _PLAIN_STOPS = ("\n\nSystem:", "\n\nUser:", "\n\nAssistant:", "\n\nTool:")

    def __init__(self, lm: LM, *, templated: bool | None = None, top_p: float = 1.0) -> None:
        """Build it.

        Args:
            lm: the model.
            top_p: share of the probability that answers are drawn from.
            templated: whether to format by `lm.apply_chat_template`; None asks the model whether it has a template.
        """
        self._lm = lm
        self._top_p = top_p
        self._templated = bool(lm.chat_template(True)) if templated is None else templated

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> list[str]:
        """Return the assistant's next message of every conversation; see ChatModel.

        A seed is passed on as the generation argument `seed`, and only where something is drawn.
        """
        requests = []
        for index, (messages, seed) in enumerate(zip(conversations, seeds, strict=True)):
            options = {
                "until": [] if self._templated else list(self._PLAIN_STOPS),
                "max_gen_toks": max_new_tokens,
                "do_sample": temperature > 0,
                "temperature": temperature,
            }
            if temperature > 0:
                options |= {"seed": seed, "top_p": self._top_p}
            text = self._format(messages)
            requests.append(
                Instance(
                    request_type="generate_until", doc={"messages": messages}, arguments=(text, options), idx=index
                )
            )
        return [answer.strip() for answer in self._lm.generate_until(requests)]

    def _format(self, messages: Sequence[Message]) -> str:
        if self._templated:
            history = [{"role": message["role"], "content": message["content"]} for message in messages]
            return self._lm.apply_chat_template(history)
        lines = [f"{message['role'].capitalize()}: {message['content']}\n\n" for message in messages]
        return "".join([*lines, "Assistant:"])

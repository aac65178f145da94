"""The lm_eval model of an endpoint: what lm_eval asks, as requests; answers, as what lm_eval expects."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from eval.endpoint.choices import LARGEST_NUM_OPTIONS, Question, scores
from eval.endpoint.client import Client
from eval.endpoint.config import Api, EndpointConfig
from eval.endpoint.journal import Answered
from eval.endpoint.logprobs import EchoScore, EchoUnusable, echo_score
from eval.endpoint.request import Request
from training.errors import ConfigError

_MOST_STOP_TEXTS = 4
"""The API takes no more; those beyond are cut on this side."""
_LETTER_TOKENS = 8
_PROBE = "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over"
_PROBE_TOKENS = 8


class Conversation(str):
    """Messages, as the text that lm_eval hands around for a prompt: a JSON list."""

    __slots__ = ()


class EndpointLM(LM):
    """Asks a model behind an OpenAI-compatible API. `close` it.

    Raises:
        ConfigError, DataError, RunInUse, StorageError: see `Client`.
    """

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__()
        self.config = config
        self.client = Client(config)
        self.unnamed_choices = 0
        """Multiple-choice answers that named no option; one was taken by chance."""
        self._scores_are_checked = False

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm_eval keeps prompts made by `apply_chat_template`."""
        return f"endpoint-{self.config.model.replace('/', '__')}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages as a prompt; the server applies the template.

        Raises:
            ConfigError: the completions API is asked, which knows no messages.
        """
        if self.config.api is Api.completions:
            raise ConfigError(
                "api", "completions", "the model's chat template is the server's own and applied only there", "api=chat"
            )
        return Conversation(json.dumps(chat_history, ensure_ascii=False))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return what the model says to each prompt, up to the first text that ends it."""
        seen: dict[str, int] = {}
        asked = [self._generation(_arguments(instance), instance.task_name, seen) for instance in requests]
        answers = self.client.ask([request for request, _ in asked])
        return [
            postprocess_generated_text(self._text(answer), stop=until, think_end_token=None)
            for answer, (_, until) in zip(answers, asked, strict=True)
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, whether it is what the model would say) of each continuation of a context.

        Raises:
            ConfigError: a chat endpoint is asked, and naming letters is not allowed.
            EchoUnusable: the server scores no texts, or wrongly.
        """
        if self.config.api is Api.chat:
            return self._by_letter(requests)
        parts = [_context_and_continuation(*_arguments(instance)) for instance in requests]
        found = self._echo_scores([(a + b, len(a), r.task_name) for (a, b), r in zip(parts, requests, strict=True)])
        return [(score.logprob, all(score.is_greedy)) for score in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability in nats of each whole text, which must fit into the model's context.

        Raises:
            ConfigError: a chat endpoint is asked.
            EchoUnusable: the server scores no texts, or wrongly.
        """
        if self.config.api is Api.chat:
            raise ConfigError(
                "api",
                "chat",
                "the log-probability of a text cannot be had through messages",
                "api=completions where the server has it; else leave tasks of output type loglikelihood_rolling out",
            )
        return [score.logprob for score in self._echo_scores([(r.args[0], 0, r.task_name) for r in requests])]

    def close(self) -> None:
        """Let another process have the journal."""
        self.client.close()

    # -- generation -------------------------------------------------------------------------------------------------

    def _generation(
        self, arguments: tuple[str, Mapping[str, Any]], task: str | None, seen: dict[str, int]
    ) -> tuple[Request, list[str]]:
        """Return a request and the texts that end its answer."""
        prompt, options = arguments
        # Of one prompt whose answers are drawn, the second request is the second sample; greedy ones are equal.
        settings: dict[str, Any] = dict(
            normalize_gen_kwargs(dict(options), default_max_gen_toks=self.config.max_output_tokens)
        )
        until = [text for text in settings.pop("until") if text]
        num_tokens, is_drawn = settings.pop("max_gen_toks"), settings.pop("do_sample")
        settings.setdefault("temperature", 0.0)
        body = self._body(prompt, num_tokens, **settings, **({"stop": until[:_MOST_STOP_TEXTS]} if until else {}))
        request = Request(body=body, task=task or "", max_output_tokens=num_tokens)
        if is_drawn:
            key = request.key(self.config.url)
            number = seen[key] = seen.get(key, -1) + 1
            if body.get("seed") is not None:
                body |= {"seed": body["seed"] + number}
            request = Request(body=body, try_number=number, task=task or "", max_output_tokens=num_tokens)
        return request, until

    def _body(self, prompt: str, num_tokens: int, **settings: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.config.model, self.config.max_tokens_field: num_tokens}
        if self.config.api is Api.completions:
            body["prompt"] = prompt
        elif isinstance(prompt, Conversation):
            body["messages"] = json.loads(prompt)
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        body |= {"seed": self.config.seed} | settings | dict(self.config.extra_body)
        return {name: value for name, value in body.items() if value is not None}

    def _text(self, answer: Answered) -> str:
        choice = answer.response["choices"][0]
        text = (
            choice.get("text") if self.config.api is Api.completions else (choice.get("message") or {}).get("content")
        )
        return text or ""  # null: a filter, or all tokens went into reasoning; the model has said nothing

    # -- scores -----------------------------------------------------------------------------------------------------

    def _echo_scores(self, texts: Sequence[tuple[str, int, str | None]]) -> list[EchoScore]:
        """Return the score of each text[begin:], given as (text, begin, task)."""
        self._check_scores()
        answers = self.client.ask([self._echo(self._prefix(begin) + text, task) for text, begin, task in texts])
        return [
            echo_score(answer.response, prefix=self._prefix(begin), text=text, begin=begin)
            for answer, (text, begin, _) in zip(answers, texts, strict=True)
        ]

    def _prefix(self, begin: int) -> str:
        """Return what stands before a text whose score begins there; something must, before its first token."""
        return "" if begin else self.config.prefix_text

    def _echo(self, text: str, task: str | None) -> Request:
        # One token is generated and dropped: servers differ in what none means.
        body = self._body(text, 1, temperature=0.0, echo=True, logprobs=1)
        return Request(body=body, task=task or "", max_output_tokens=1)

    def _check_scores(self) -> None:
        """Make sure that what the server says is likeliest is what it generates.

        Not all do: llama-cpp-python 0.3.36 gives every token the score of the next one, for models without a token
        for the beginning of a text.

        Raises:
            EchoUnusable: it is not, or it gives no scores.
        """
        if self._scores_are_checked:
            return
        body = self._body(_PROBE, _PROBE_TOKENS, temperature=0.0)
        (generated,) = self.client.ask([Request(body=body, task="probe", max_output_tokens=_PROBE_TOKENS)])
        text = _PROBE + self._text(generated)
        (echoed,) = self.client.ask([self._echo(text, "probe")])
        score = echo_score(echoed.response, prefix="", text=text, begin=len(_PROBE))
        # Half of them, as the text may be cut into other tokens than it was generated in.
        if sum(score.is_greedy) * 2 < len(score.is_greedy) or not score.is_greedy:
            raise EchoUnusable(
                f"{self.config.url} goes on with {text[len(_PROBE) :]!r} after {_PROBE!r}, and by its own "
                f"log-probabilities only {sum(score.is_greedy)} of these {len(score.is_greedy)} tokens are the "
                "likeliest: its scores are wrong, or those of other positions\n"
                "  -> use a server whose scores are right; nothing was measured"
            )
        self._scores_are_checked = True

    def _by_letter(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        if not self.config.multiple_choice_by_letter:
            raise ConfigError(
                "api",
                "chat",
                "log-likelihoods of given answers cannot be had through messages",
                "api=completions where the server has echo and logprobs; or multiple_choice_by_letter=true: the model "
                "names a letter, which is another measurement; or leave multiple-choice tasks out",
            )
        groups: dict[tuple[str | None, int | None], list[int]] = {}
        for i, instance in enumerate(requests):
            groups.setdefault((instance.task_name, instance.doc_id), []).append(i)
        questions = {of: _question([requests[i] for i in group]) for of, group in groups.items()}
        answers = self.client.ask(
            [
                Request(
                    body=self._body(_put(question), _LETTER_TOKENS, temperature=0.0),
                    task=task or "",
                    max_output_tokens=_LETTER_TOKENS,
                )
                for (task, _), question in questions.items()
            ]
        )
        found: dict[int, tuple[float, bool]] = {}
        for (of, question), answer in zip(questions.items(), answers, strict=True):
            logprobs, is_named = scores(question, self._text(answer))
            self.unnamed_choices += not is_named
            found |= {i: (logprob, logprob == 0.0) for i, logprob in zip(groups[of], logprobs, strict=True)}
        return [found[i] for i in range(len(requests))]


def _arguments(instance: Instance) -> tuple[str, Any]:
    """Return the two values that lm_eval hands over: a prompt, and what is asked about it."""
    return cast(tuple[str, Any], instance.args)


def _context_and_continuation(context: str, continuation: str) -> tuple[str, str]:
    """Return both, spaces at the end of the context moved, as lm_eval does: tokens of words begin with their space."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _question(instances: Sequence[Instance]) -> Question:
    contexts = {_arguments(instance)[0] for instance in instances}
    options = tuple(_arguments(instance)[1] for instance in instances)
    if len(contexts) != 1 or not 2 <= len(options) <= LARGEST_NUM_OPTIONS:
        raise ConfigError(
            "multiple_choice_by_letter",
            True,
            f"task {instances[0].task_name} has {len(options)} options after {len(contexts)} contexts for one item: "
            "it is no question with options",
            "leave the task out for this endpoint",
        )
    return Question(context=contexts.pop(), options=options)


def _put(question: Question) -> str:
    """Return the prompt of a question; the options stand in the last message where it is a conversation."""
    if not isinstance(question.context, Conversation):
        return question.prompt
    messages = json.loads(question.context)
    messages[-1]["content"] = Question(context=messages[-1]["content"], options=question.options).prompt
    return Conversation(json.dumps(messages, ensure_ascii=False))

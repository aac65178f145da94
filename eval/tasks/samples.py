"""Greedy continuations of the suite's prompts, for people to read; they give no number."""

from eval.conductor import TokenModel
from eval.data import EvalData
from eval.requests import Prompt
from eval.tasks.base import Task, TaskResult
from training.config.eval_schema import SuiteConfig


def _run(model: TokenModel, data: EvalData, suite: SuiteConfig) -> TaskResult:
    """Continue every prompt by the most likely tokens."""
    tokenizer = data.tokenizer
    continuations = model.generate(
        [
            Prompt(ids=[tokenizer.eos_id, *tokenizer.encode(prompt)], max_new_tokens=suite.sample_tokens)
            for prompt in suite.prompts
        ]
    )
    return TaskResult(
        metrics={},
        items=[
            {"prompt": prompt, "text": tokenizer.decode(ids)}
            for prompt, ids in zip(suite.prompts, continuations, strict=True)
        ],
    )


SAMPLES = Task(name="samples", version=1, run=_run)

"""Greedy continuations of the suite's prompts, for people to read; they give no number."""

from eval.data import EvalData
from eval.lm import EngineLM
from eval.tasks.base import Task, TaskResult
from training.config.schema import SuiteConfig


def _run(lm: EngineLM, data: EvalData, suite: SuiteConfig) -> TaskResult:
    """Continue every prompt by the most likely tokens."""
    prompts_ids = [data.tokenizer.encode(prompt) for prompt in suite.prompts]
    continuations = lm.greedy(prompts_ids, suite.sample_tokens)
    return TaskResult(
        metrics={},
        items=[
            {"prompt": prompt, "text": data.tokenizer.decode(ids)}
            for prompt, ids in zip(suite.prompts, continuations, strict=True)
        ],
    )


SAMPLES = Task(name="samples", version=1, run=_run)

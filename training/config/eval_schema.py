"""The part of the schema that says what is measured; see `training/config/schema.py`."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """How one benchmark is run; docs/evaluation_tasks.md says which there are."""

    items: int | None = None
    """Use only the first items; null takes all."""
    few_shot: int = 0
    """Solved examples before each question, drawn from the benchmark itself (never the question's own)."""
    tries: int = 1
    """Times that each task is tried, where trying again makes sense (workflows, programs): pass_hat_k is the share of
    tasks that all of k tries solve."""
    temperature: float = 0.0
    """Of generated answers; above 0 for several tries."""
    top_p: float = 1.0
    """Share of the probability that answers are drawn from."""
    max_new_tokens: int | None = None
    """Longest answer; null takes the benchmark's own."""
    chat: bool = False
    """Put each question through the chat template of the model's tokenizer."""
    compact: bool = False
    """For bfcl_*: show functions by a line each, not by their JSON schemas, for less than half of the tokens."""
    held_out_fraction: float | None = None
    """Use only items that `python -m eval.workflows.trajectories --held-out-fraction` of the same share keeps out of
    the training data that it makes; null takes all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """What one evaluation measures."""

    version: int = 1
    """Of the suite; raise it with every change, so that nobody compares numbers of different suites."""
    held_out_source: str | None = None
    """Source whose held-out documents give bits per byte; suites of training stages need one, or conversations."""
    held_out_documents: int = 0
    """Number of held-out documents (the first ones in the source's order)."""
    document_tokens: int = 256
    """Tokens of each document or conversation that are scored (its beginning)."""
    conversation_source: str | None = None
    """Source of conversations whose held-out records give assistant_nats_per_token: what the assistant says, scored
    after all that stands before it."""
    held_out_conversations: int = 0
    """Number of held-out conversations (the first ones in the source's order)."""
    multiple_choice_items: int = 0
    """Items of the "which continuation is the real one" task made from held-out text; 0 leaves it out."""
    prompts: list[str] = field(default_factory=list)
    """Prompts that are continued greedily and shown in the report."""
    sample_tokens: int = 24
    """Tokens generated per prompt."""
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict)
    """Name -> how it is run; their items are prepared before (python -m eval.prepare)."""
    max_length: int | None = None
    """Most tokens that a benchmark's question and answer have together, longer ones lose their beginning; null takes
    the model's longest sequence."""
    batch_sequences: int = 8
    """Sequences per forward pass; part of the result's identity, not tuned by the layout."""
    seed: int = 0
    """Of drawn answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation suites by name, and whether the untrained model is measured first."""

    suites: dict[str, SuiteConfig]
    """Suite name -> content."""
    at_start: bool = True
    """Run the first training stage's suite before the first step: the baseline of the report and of the first gate."""
    contamination: bool = True
    """Look for the items of every suite in the run's training data, and give every metric without those that stand
    there too; the data is read once for new items (5 to 12 MB of text a second), then the result is kept."""
    silent_seconds: int = 1800
    """Longest that the tasks of a suite may compute on rank 0 (parse, compare, run programs) without asking the model
    for anything; an evaluation that takes longer is given up, and the run goes on without it."""

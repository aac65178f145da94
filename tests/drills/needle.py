"""A small model learns to find a number hidden in text, and then, in a long-context stage, to find it in long texts.

    python -m tests.drills.needle [--write docs/long_context.md]

One run as users start them, on two processes: a training stage of short sequences, then one of sequences eight times
as long, whose tokens the two ranks share. After each the benchmark `short_needle` measures the live model: texts, facts
and numbers that it was never trained on. Then the memory of ranks that share a sequence is counted in live engines.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks.needle_data import SHORT_LENGTHS_CHARACTERS
from eval.prepare import prepare
from tests.distributed.sequence_memory_worker import WORLD_SIZE, StepBytes, ratios, read
from tests.drills.drill_run import conclude
from tests.drills.needle_text import write_texts
from tests.integration.running import only_run, run_to_end, submit_to_end
from training.durable_files import write_durably
from training.plain_files import read_json

BENCHMARK = "short_needle"
SHORT_TOKENS, LONG_TOKENS = 128, 1024
"""Length of a sequence of either training stage."""
SHORT_CHARACTERS, LONG_CHARACTERS = 120, 2000
"""Longest hay of either: with its fact and the question it fits into a sequence."""
_VOCABULARY = 512
_MEMORY_TOKENS = 8192
_LEARNED = 0.9
"""Least share of the numbers that has to be found after the long-context stage, at every length."""
_MOST_BEFORE = 0.25
"""Largest share that may be found before it in the longest texts."""
_MOST_MEMORY = 0.56
"""Largest share of activations that each of two ranks may take; buffers of the exchanges are beyond a half."""


_HEADING = "## A needle in long texts"
_INTRODUCTION = f"""\
Written by `python -m tests.drills.needle --write docs/long_context.md`, which trains and measures on two CPU processes.

A sentence with a number of four digits lies somewhere in the text, "The secret number of Lisbon is 4821.", and is begun
once more behind it; what counts is the whole number, decoded greedily by the live engine (benchmark `short_needle`, 20
items of each length, five depths; the verses are held out, the facts not trained on). The model has two blocks of width
64. It learns from sequences of {SHORT_TOKENS} tokens, then from sequences of {LONG_TOKENS:,} under
`parallel.sequence=2`, with document masks in both. Positions are plain rotary ones of base 10,000 throughout: the stage
itself teaches the longer distances. A quarter of it is short texts again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much is trained."""

    short_steps: int
    long_steps: int
    short_documents: int
    long_documents: int


FULL = Budget(short_steps=2500, long_steps=800, short_documents=20_000, long_documents=5_000)


def overrides_of(root: Path, budget: Budget) -> list[str]:
    """Return the overrides that make the run, all of whose files lie under a root."""
    short = _stage(SHORT_TOKENS, budget.short_steps, sequences=8, micro_batch=4, lr=4e-3, layout="zero_stage: 1")
    long = _stage(
        LONG_TOKENS, budget.long_steps, sequences=4, micro_batch=4, lr=3e-3, layout="zero_stage: 1, sequence: 2"
    )
    return [
        "run.name=needle",
        f"run.root={root / 'runs'}",
        f"data.prepared_root={root / 'prepared'}",
        "reporting.wandb.mode=disabled",
        f"cluster.processes_per_node={WORLD_SIZE}",
        "checkpoint.every_steps=1000",
        f"model.vocab_size={_VOCABULARY}",
        "model.hidden_size=64",
        "model.num_layers=2",
        "model.num_heads=4",
        "model.num_kv_heads=4",
        "model.ffn_size=128",
        f"model.max_sequence_length={LONG_TOKENS}",
        "model.rope_theta=10000",
        "model.init_std=0.125",  # 1/sqrt(hidden size): from 0.05 on, attention finds nothing within this budget
        f"data.tokenizer_vocab_size={_VOCABULARY}",
        "~data.sources.kjv",
        "~data.sources.python",
        f"+data.sources.short={{kind: text_files, path: {root / 'texts' / 'short'}}}",
        f"+data.sources.long={{kind: text_files, path: {root / 'texts' / 'long'}}}",
        "~eval.suites.quick",
        "+eval.suites.needle={held_out_source: long, held_out_documents: 8, batch_sequences: 8, "
        f"benchmarks: {{{BENCHMARK}: {{}}}}}}",
        "~stages.pretrain",
        f"+stages.short={{mixture: {{short: 1}}, {short}}}",
        f"+stages.long_context={{mixture: {{long: 0.75, short: 0.25}}, {long}}}",
    ]


def _stage(length_tokens: int, steps: int, *, sequences: int, micro_batch: int, lr: float, layout: str) -> str:
    return (
        f"tokens: {steps * sequences * length_tokens}, sequence_length: {length_tokens}, document_mask: true, "
        f"global_batch_sequences: {sequences}, micro_batch_sequences: {micro_batch}, lr: {lr}, "
        f"parallel: {{{layout}}}, eval_suite: needle"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Shares of the numbers that were found, by the text's length in characters."""

    before: dict[int, float]
    """After the stage of short sequences."""
    after: dict[int, float]
    """After the long-context stage."""


def train(root: Path, budget: Budget, *, seed: int) -> Path:
    """Return the run directory of a whole run, made and started under a root.

    Raises:
        AssertionError: the run did not end as it should.
    """
    for name, num_documents, longest in (
        ("short", budget.short_documents, SHORT_CHARACTERS),
        ("long", budget.long_documents, LONG_CHARACTERS),
    ):
        write_texts(root / "texts" / name, num_documents=num_documents, longest_characters=longest, seed=seed)
    prepare(BENCHMARK, root / "prepared")
    finished = submit_to_end(overrides_of(root, budget), folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return only_run(root / "runs")


def found_in(run_directory: Path) -> Found:
    """Return what a run's evaluations after both training stages say."""

    def shares(training_stage: str) -> dict[int, float]:
        metrics = read_json(run_directory / "eval" / training_stage / "needle.json")["metrics"]
        return {length: metrics[f"{BENCHMARK}/acc_{length}"] for length in SHORT_LENGTHS_CHARACTERS}

    return Found(before=shares("short"), after=shares("long_context"))


def unlearned(found: Found) -> list[str]:
    """Return a sentence for each length at which the claim fails: found after the long-context stage, not before it."""
    problems = [f"{length} characters: {share:.0%} found" for length, share in found.after.items() if share < _LEARNED]
    longest = max(found.before)
    if found.before[longest] > _MOST_BEFORE:
        problems.append(f"{longest} characters: {found.before[longest]:.0%} found before the long-context stage")
    return problems


def measure_memory(folder: Path) -> dict[int, list[StepBytes]]:
    """Return what ranks take that share a sequence and ranks that do not; see `sequence_memory_worker`."""
    output = folder / "memory.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    worker = ["-m", "tests.distributed.sequence_memory_worker", str(output), str(_MEMORY_TOKENS)]
    finished = run_to_end([*torchrun, *worker], folder=folder)
    assert finished.exit_code == 0, finished.explain()
    return read(output)


def table_of(found: Found, memory: Mapping[int, list[StepBytes]]) -> str:
    """Return both results as Markdown."""
    lines = [
        "| characters of the text | found before the long-context stage | after it |",
        "|---|---|---|",
        *(f"| {length:,} | {found.before[length]:.0%} | {found.after[length]:.0%} |" for length in found.after),
        "",
        f"| ranks that share a sequence of {_MEMORY_TOKENS:,} tokens | held between steps | a step's activations "
        "| highest |",
        "|---|---|---|---|",
    ]
    for sequence, ranks in memory.items():
        most = max(ranks, key=lambda rank: rank.highest)
        numbers = (most.held, most.activations, most.highest)
        lines.append(f"| {sequence} | " + " | ".join(f"{number / 1e6:.1f} MB" for number in numbers) + " |")
    of_activations, of_all = ratios(memory)
    return "\n".join([*lines, f"| share | | {of_activations:.2f} | {of_all:.2f} |"])


def main(arguments: Sequence[str]) -> int:
    """Train, measure, print the tables; return 0 if the claims hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.drills.needle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the texts")
    parser.add_argument("--write", type=Path, help=f"also write the tables to a file, below its line {_HEADING!r}")
    options = parser.parse_args(arguments)
    folder, started = Path(tempfile.mkdtemp(prefix="autarky-needle-")), time.monotonic()
    found = found_in(train(folder, FULL, seed=options.seed))
    memory = measure_memory(folder)
    tables = table_of(found, memory)
    problems = unlearned(found)
    if (share := ratios(memory)[0]) > _MOST_MEMORY:
        problems.append(f"two ranks that share a sequence take {share:.0%} of the activations of one that has all")
    print(tables, *problems, f"needle: {len(problems)} problems, {time.monotonic() - started:.0f} s", sep="\n")
    if options.write:
        before, heading, _ = options.write.read_text(encoding="utf-8").partition(f"{_HEADING}\n")
        assert heading, f"{options.write} has no line {_HEADING}"
        write_durably(options.write, f"{before}{heading}\n{_INTRODUCTION}\n\n{tables}\n")
    return conclude(folder, is_wrong=bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs a suite on a model and makes the report of it. Draws no random number and changes no training state."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.conductor import Conducted, Ranks, TokenModel, conduct
from eval.contamination import find_overlaps, held_out_passages, mark
from eval.data import EvalData, data_identity
from eval.lm import EngineLM, InferenceEngine
from eval.tasks.assistant_turns import ASSISTANT_TURNS
from eval.tasks.base import Task
from eval.tasks.held_out import HELD_OUT
from eval.tasks.multiple_choice import MULTIPLE_CHOICE
from eval.tasks.samples import SAMPLES
from eval.text_tokenizers import RunTokenizer, TextTokenizer
from eval.throughput import Metered
from training.config.benchmarks import BENCHMARKS
from training.config.eval_schema import SuiteConfig
from training.data.benchmark_passages import benchmark_passages
from training.data.shards import PreparedData
from training.durable_files import write_durably
from training.plain_files import read_json

if TYPE_CHECKING:
    from lm_eval.api.model import LM

LARGEST_REPORT_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskReport:
    """What one task looked at."""

    version: int
    items: list[dict[str, Any]]
    """JSON object of each document, question or sample; "overlap" is the share of its n-grams in the training data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalReport:
    """Everything one evaluation found."""

    suite_name: str
    suite: SuiteConfig
    weights: str
    """Says which weights were measured: alike for weights that are alike, in two starts of a run too."""
    metrics: dict[str, float]
    """All numbers of all tasks by name, bits_per_byte among them."""
    tasks: dict[str, TaskReport]
    """Task name -> what it looked at."""
    training_data: str
    """Fingerprint of the training data that the items were looked for in, or that it is not known."""
    contamination: dict[str, dict[str, float]]
    """Benchmark or task -> how many of its items stand in the training data; see `contamination.mark`."""
    data_identity: str
    """SHA-256 of the held-out records as the tokenizer splits them; numbers compare only if it is equal."""
    seconds: float
    throughput: dict[str, float] = field(default_factory=dict)
    """What it took: tokens, rates, and costs as far as they are known."""

    @property
    def bits_per_byte(self) -> float:
        """Held-out bits per byte; KeyError if the suite has no held-out text."""
        return self.metrics["bits_per_byte"]

    @property
    def samples(self) -> list[dict[str, str]]:
        """Greedy samples: {"prompt": …, "text": …}."""
        return self.tasks[SAMPLES.name].items if SAMPLES.name in self.tasks else []


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a model is measured on."""

    data: EvalData | None
    """Held-out documents, in tokens; None measures benchmarks only."""
    prepared_root: Path
    """Folder of prepared benchmarks."""
    training_data: PreparedData | None = None
    """What the model was trained on, to look for the items in; None: it is not known, or not to be searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineModel:
    """A model on a live engine."""

    engine: InferenceEngine
    """Under any layout."""
    tokenizer: TextTokenizer
    """The model's own."""
    max_length: int
    """Its longest sequence, in tokens."""
    shares_tokens: bool
    """Whether the documents that it is measured on are in tokens of its own; if not, it is asked in text."""
    price_per_hour: float | None = None
    """Of one device, in any one currency; None: it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What every rank knows of an evaluation."""

    metrics: dict[str, float]
    samples: list[dict[str, str]]
    seconds: float
    throughput: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: EngineModel,
    ranks: Ranks,
    subject: Subject,
    suite: SuiteConfig,
    *,
    suite_name: str,
    weights: str = "",
    path: Path | None = None,
    reuses_report: bool = False,
    silent_seconds: float,
) -> Summary:
    """Return what a suite finds in the engine's present weights; collective.

    Args:
        model: the engine, and what is known of the model on it.
        ranks: all of them.
        subject: the data that it is measured on.
        suite: what is measured.
        suite_name: its name.
        weights: see `EvalReport.weights`.
        path: where rank 0 writes the report; None writes none.
        reuses_report: whether a report that is there, of the same suite, weights and versions, is read, and nothing is
            measured again; only where `weights` can be relied on.
        silent_seconds: see `conductor.conduct`.

    Raises:
        EvaluationFailed: on every rank: a task failed, or did not ask the model for anything for `silent_seconds`.
    """
    tokenizer = model.tokenizer
    lm = EngineLM(
        engine=model.engine, speller=tokenizer, eos_id=tokenizer.eos_id, batch_sequences=suite.batch_sequences
    )

    def work(computing: Conducted) -> Summary:
        found = _summary_in(path, suite, weights, subject) if path is not None and reuses_report else None
        if found is None:
            metered = Metered(
                model=computing,
                num_devices=model.engine.layout.world_size,
                price_per_hour=model.price_per_hour,
            )
            in_tokens, in_text = _both_ways(metered, model, subject, suite)
            report = measure(
                in_tokens,
                in_text,
                subject,
                suite,
                suite_name=suite_name,
                weights=weights,
                keep_alive=computing.keep_alive,
            )
            report = replace(report, throughput=metered.numbers())
            if path is not None:
                write_report(report, path)
            found = Summary(
                metrics=report.metrics, samples=report.samples, seconds=report.seconds, throughput=report.throughput
            )
        return found

    made = conduct(lm, ranks, work, silent_seconds=silent_seconds)
    return Summary(**json.loads(ranks.broadcast_text(None if made is None else json.dumps(asdict(made)))))


def _both_ways(
    metered: Metered, model: EngineModel, subject: Subject, suite: SuiteConfig
) -> tuple[TokenModel, "LM | None"]:
    """Return what a suite asks in tokens, and, if it asks anything in text, the same model as an LM of lm_eval."""
    documents = None if model.shares_tokens else subject.data  # in tokens of another model
    if not suite.benchmarks and documents is None:
        return metered, None
    # Imported only now: lm_eval takes seconds of every start, of which most need none of it.
    from eval.live_model import LiveModel
    from eval.text_model import TextModel

    live = LiveModel(
        metered,
        model.tokenizer,
        prefix_id=model.tokenizer.eos_id,
        max_length=suite.max_length or model.max_length,
        seed=suite.seed,
    )
    return metered if documents is None else TextModel(live, RunTokenizer(documents.tokenizer)), live


def measure(
    model: TokenModel,
    lm: "LM | None",
    subject: Subject,
    suite: SuiteConfig,
    *,
    suite_name: str,
    weights: str = "",
    keep_alive: Callable[[], None] = lambda: None,
) -> EvalReport:
    """Return the report of a suite on a model.

    Args:
        model: over tokens, for what is measured on held-out documents.
        lm: the same model over text, for benchmarks; None will do for a suite without any.
        subject: the data that it is measured on.
        suite: what is measured.
        suite_name: its name.
        weights: see `EvalReport.weights`.
        keep_alive: is called often while the training data is searched.

    Raises:
        DataError: the held-out text does not give what the suite asks for, or a benchmark is not prepared.
    """
    started = time.monotonic()
    metrics: dict[str, float] = {}
    tasks: dict[str, TaskReport] = {}
    data = subject.data
    if data is not None:
        for task in _tasks_of(suite):
            result = task.run(model, data, suite)
            metrics |= result.metrics
            tasks[task.name] = TaskReport(version=task.version, items=result.items)
    if suite.benchmarks:
        assert lm is not None, "benchmarks are asked in text"
        from eval.benchmark_runs import run_benchmarks

        for name, result in run_benchmarks(lm, suite, subject.prepared_root).items():
            metrics |= result.metrics
            tasks[name] = TaskReport(version=BENCHMARKS[name].version, items=result.items)
    contamination = {}
    if subject.training_data is not None:
        groups = held_out_passages(data, suite) if data is not None else {}
        groups |= {name: benchmark_passages(subject.prepared_root, name) for name in suite.benchmarks}
        overlaps = find_overlaps(subject.training_data, subject.prepared_root, groups, keep_alive=keep_alive)
        contamination = {name: mark(tasks[name].items, found) for name, found in overlaps.items()}
    metrics |= {f"{name}/contaminated": numbers["share"] for name, numbers in contamination.items()}
    return EvalReport(
        suite_name=suite_name,
        suite=suite,
        weights=weights,
        metrics=metrics,
        tasks=tasks,
        training_data=_training_data(subject),
        contamination=contamination,
        data_identity=data_identity(data, suite) if data is not None else "",
        seconds=time.monotonic() - started,
    )


def _training_data(subject: Subject) -> str:
    return subject.training_data.fingerprint if subject.training_data else "not known, or not searched"


def to_json(report: EvalReport) -> str:
    """Return a report as JSON text that can be encoded."""
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    # An answer over HTTP can hold half a character, which UTF-8 has no bytes for: its escape is the same in JSON.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_report(report: EvalReport, path: Path) -> None:
    """Write a report so that the file is whole or absent after a kill; one rank does it.

    Raises:
        StorageError: it could not be written.
    """
    write_durably(path, to_json(report))


def _summary_in(path: Path, suite: SuiteConfig, weights: str, subject: Subject) -> Summary | None:
    """Return what a report says if it is of the same suite and weights, and nothing would be measured otherwise now."""
    versions = {task.name: task.version for task in _tasks_of(suite)}
    versions |= {name: BENCHMARKS[name].version for name in suite.benchmarks}
    try:
        report = read_json(path, largest_bytes=LARGEST_REPORT_BYTES)
        if report["suite"] != json.loads(json.dumps(asdict(suite))) or report["weights"] != weights:
            return None
        if {name: task["version"] for name, task in report["tasks"].items()} != versions:
            return None
        if report["training_data"] != _training_data(subject):
            return None
        samples = report["tasks"].get(SAMPLES.name, {"items": []})["items"]
        return Summary(
            metrics=report["metrics"],
            samples=samples,
            seconds=report["seconds"],
            throughput=report["throughput"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none that could be used: it is made, and written over this one


def with_more_items(suite: SuiteConfig, look: int) -> SuiteConfig:
    """Return a suite for a training stage's evaluation number `look`: each asks for twice the items of the one before.

    The first items stay the same ones.
    """
    factor = 2 ** (look - 1)
    benchmarks = {
        name: how if how.items is None else replace(how, items=how.items * factor)
        for name, how in suite.benchmarks.items()
    }
    return replace(
        suite,
        held_out_documents=suite.held_out_documents * factor,
        multiple_choice_items=suite.multiple_choice_items * factor,
        held_out_conversations=suite.held_out_conversations * factor,
        benchmarks=benchmarks,
    )


def _tasks_of(suite: SuiteConfig) -> list[Task]:
    """Return the tasks that a suite asks for."""
    tasks = [HELD_OUT] if suite.held_out_source else []
    if suite.held_out_source and suite.multiple_choice_items > 0:
        tasks.append(MULTIPLE_CHOICE)
    if suite.conversation_source:
        tasks.append(ASSISTANT_TURNS)
    if suite.prompts:
        tasks.append(SAMPLES)
    return tasks

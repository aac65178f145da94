"""Real prepared data in small: some chapters of the Bible and some files of the standard library."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval import contamination
from eval.contamination import find_overlaps, held_out_passages, training_texts
from eval.evidence import decide_from_reports
from eval.harness import EvalReport, Subject, measure, write_report
from eval.live_model import LiveModel
from eval.text_tokenizers import RunTokenizer
from tests.unit.eval.tiny import TinyEngine, make_lm, make_model
from training.config.benchmarks import BENCHMARKS
from training.config.data_schema import DataConfig, SourceConfig, SourceKind
from training.config.eval_schema import BenchmarkConfig, SuiteConfig
from training.config.gate_schema import GateCondition, GateConfig, Metric
from training.data.benchmark_passages import benchmark_passages
from training.data.prepare import prepare
from training.data.shards import PreparedData
from training.data.text_overlap import words
from training.errors import StorageError

SUITE = SuiteConfig(
    held_out_source="bible",
    held_out_documents=8,
    document_tokens=40,
    multiple_choice_items=4,
    benchmarks={"fcc_amateur_extra": BenchmarkConfig(items=6)},
    max_length=96,
)
FOREIGN = [
    "The carburettor of this zeppelin was polished twice a day by seventeen enthusiastic volunteers from Utrecht."
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(
        DataConfig(
            sources={
                "bible": SourceConfig(kind=SourceKind.kjv, max_documents=60),
                "code": SourceConfig(kind=SourceKind.python_stdlib, max_documents=12),
            },
            tokenizer_vocab_size=512,
            held_out_fraction=0.2,
            prepared_root=str(tmp_path_factory.mktemp("prepared")),
        )
    )


def stretch_of(data: PreparedData, source: str, num_words: int = 30) -> str:
    """Return words from the midst of a training document, as a person would write them down."""
    stream = data.train(source)
    start, end = stream.starts(np.array([2, 3]))
    found = words(data.tokenizer.decode(stream.tokens(start, end).tolist()))
    return " ".join(found[len(found) // 2 :][:num_words]).capitalize()


def find(data: PreparedData, root: Path, items: Mapping[str, Sequence[str]]) -> dict[str, float]:
    return find_overlaps(data, root, {"cissp": items}, keep_alive=lambda: None)["cissp"]


@pytest.mark.parametrize("source", ["bible", "code"])
def test_an_item_copied_from_a_training_document_is_found(source: str, data: PreparedData, tmp_path: Path) -> None:
    items = {"copied": [stretch_of(data, source)], "short": [stretch_of(data, source, 9)], "foreign": FOREIGN}
    assert find(data, tmp_path, items) == {"copied": 1.0, "short": 1.0, "foreign": 0.0}


def test_held_out_documents_are_not_searched(data: PreparedData) -> None:
    texts = [text for batch in training_texts(data) for text in batch]
    assert len(texts) == sum(entry.train.num_records for entry in data.manifest.sources.values())
    assert sum(len(text.encode()) for text in texts) == sum(e.train.num_bytes for e in data.manifest.sources.values())
    held_out = {data.tokenizer.decode(d.token_ids.tolist()) for d in data.held_out_documents("bible")}
    assert held_out.isdisjoint(texts)


def test_a_document_longer_than_a_batch_is_searched_in_pieces_that_overlap(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination, "_BATCH_TOKENS", 300)
    monkeypatch.setattr(contamination, "_OVERLAPPING_TOKENS", 150)
    stream = data.train("bible")
    start, end = stream.starts(np.array([2, 3]))
    assert end - start > 600
    document = data.tokenizer.decode(stream.tokens(start, end - 1).tolist())
    assert find(data, tmp_path, {"whole": [document]}) == {"whole": 1.0}
    assert all(len(data.tokenizer.encode(text)) <= 300 for batch in training_texts(data) for text in batch)


def test_what_was_found_is_kept_for_these_items_in_this_data_alone(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"copied": [stretch_of(data, "bible")], "foreign": FOREIGN}
    first = find(data, tmp_path, items)
    (path,) = (tmp_path / "contamination").rglob("*.json")
    content = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "training_texts", lambda data: pytest.fail("it is known already"))
        assert find(data, tmp_path, items) == first
    for damaged in ("", "{}", content.replace(data.fingerprint, "0" * 64), content.replace("1.0", "7.0")):
        path.write_text(damaged)
        assert find(data, tmp_path, items) == first
    assert path.read_text() == content
    assert find(data, tmp_path, {"foreign": [stretch_of(data, "code")]}) == {"foreign": 1.0}
    assert len([*(tmp_path / "contamination").rglob("*.json")]) == 2


def test_a_folder_that_cannot_be_written_costs_the_file_not_the_numbers(
    data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "contamination").write_text("a file where a folder should be")
    assert find(data, tmp_path, {"foreign": FOREIGN}) == {"foreign": 0.0}
    assert "not kept for others" in caplog.text
    assert StorageError.__name__ not in caplog.text


def test_the_search_says_after_every_batch_that_it_goes_on(data: PreparedData, tmp_path: Path) -> None:
    batches: list[int] = []
    find_overlaps(data, tmp_path, {"cissp": {"foreign": FOREIGN}}, keep_alive=lambda: batches.append(1))
    assert len(batches) == len([*training_texts(data)]) > 0


def test_every_item_of_every_benchmark_can_be_looked_for(prepared_benchmarks: Path) -> None:
    for name in BENCHMARKS:
        passages = benchmark_passages(prepared_benchmarks, name)
        assert passages, name
        assert all(any(map(words, texts)) for texts in passages.values()), name


def test_what_is_measured_on_held_out_documents_is_what_the_model_reads(data: PreparedData) -> None:
    found = held_out_passages(data, SUITE)
    assert {name: len(items) for name, items in found.items()} == {"held_out": 8, "multiple_choice": 4}
    first = data.held_out_documents("bible")[0]
    (text,) = found["held_out"][first.id]
    assert data.tokenizer.decode(first.token_ids.tolist()).startswith(text)
    assert held_out_passages(data, replace(SUITE, multiple_choice_items=0)).keys() == {"held_out"}
    assert held_out_passages(data, replace(SUITE, held_out_source=None)) == {}


@pytest.fixture(scope="module")
def root(data: PreparedData, prepared_benchmarks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared data of its own, with the benchmarks of all tests."""
    root = tmp_path_factory.mktemp("root")
    (root / "benchmarks").symlink_to(prepared_benchmarks / "benchmarks")
    return root


def report_of(data: PreparedData, root: Path, training_data: PreparedData | None) -> EvalReport:
    tokenizer = RunTokenizer(data.tokenizer)
    engine = TinyEngine(make_model(data.tokenizer.vocab_size))
    lm = make_lm(engine, data, SUITE.batch_sequences)  # pyright: ignore[reportArgumentType]
    live = LiveModel(lm, tokenizer, prefix_id=tokenizer.eos_id, max_length=96)
    subject = Subject(data=data, prepared_root=root, training_data=training_data)
    return measure(lm, live, subject, SUITE, suite_name="quick")


@pytest.fixture(scope="module")
def marked(data: PreparedData, root: Path) -> EvalReport:
    return report_of(data, root, data)


def test_a_report_gives_every_items_overlap_and_their_share(marked: EvalReport, data: PreparedData) -> None:
    assert marked.training_data == data.fingerprint
    assert set(marked.contamination) == {"held_out", "multiple_choice", "fcc_amateur_extra"}
    for name, numbers in marked.contamination.items():
        overlaps = [item["overlap"] for item in marked.tasks[name].items]
        assert numbers["items"] == len(overlaps)
        assert numbers["contaminated"] == sum(overlap > 0 for overlap in overlaps)
        assert marked.metrics[f"{name}/contaminated"] == numbers["share"] == numbers["contaminated"] / len(overlaps)
    assert marked.contamination["fcc_amateur_extra"]["contaminated"] == 0


def test_nothing_else_in_an_evaluation_changes_and_without_training_data_nothing_is_said(
    marked: EvalReport, data: PreparedData, root: Path
) -> None:
    plain = report_of(data, root, None)
    assert (plain.contamination, plain.training_data) == ({}, "not known, or not searched")
    assert {name: v for name, v in marked.metrics.items() if not name.endswith("/contaminated")} == plain.metrics
    for name, task in marked.tasks.items():
        assert [{k: v for k, v in i.items() if k != "overlap"} for i in task.items] == plain.tasks[name].items


def with_overlaps(report: EvalReport, name: str, overlaps: Sequence[float]) -> EvalReport:
    items = [item | {"overlap": o} for item, o in zip(report.tasks[name].items, overlaps, strict=True)]
    return replace(report, tasks=report.tasks | {name: replace(report.tasks[name], items=items)})


def test_a_gate_says_what_a_metric_is_without_the_contaminated_items(marked: EvalReport, tmp_path: Path) -> None:
    write_report(
        with_overlaps(
            with_overlaps(marked, "fcc_amateur_extra", [1.0, 0.0, 0.5, 0.0, 0.0, 0.0]), "held_out", [0.0] * 8
        ),
        tmp_path / "quick.json",
    )
    gate = GateConfig(
        conditions={
            "licence": GateCondition(metric="fcc_amateur_extra/acc", at_least=0.5),
            "again": GateCondition(metric="fcc_amateur_extra/acc", at_least=0.1),
            "text": GateCondition(metric=Metric.bits_per_byte, at_most=1.0),
            "unmeasured": GateCondition(metric="cissp/acc", at_least=0.5),
        }
    )
    decision = decide_from_reports(gate, tmp_path / "quick.json", {}, look=1)
    scores = [item["scores"]["acc"] for item in marked.tasks["fcc_amateur_extra"].items]
    clean = sum(scores[i] for i in (1, 3, 4, 5)) / 4
    assert decision.reasons[4:] == (
        "2 of 6 items of fcc_amateur_extra stand in the training data, on average 0.25 of all items' n-grams; "
        f"without them acc is {clean:.4g}",
        "none of the 8 items of held_out stands in the training data",
    )
    of_licence, _, _, of_unmeasured = decision.numbers
    assert (of_licence["contaminated_items"], of_licence["value_without_contaminated"]) == (2, clean)
    assert "contaminated_items" not in of_unmeasured
    json.dumps(decision.numbers, allow_nan=False)


def test_a_gate_says_when_nothing_is_left_and_when_it_is_not_known(
    marked: EvalReport, data: PreparedData, root: Path, tmp_path: Path
) -> None:
    gate = GateConfig(conditions={"licence": GateCondition(metric="fcc_amateur_extra/acc", at_least=0.5)})
    write_report(with_overlaps(marked, "fcc_amateur_extra", [1.0] * 6), tmp_path / "all.json")
    decision = decide_from_reports(gate, tmp_path / "all.json", {}, look=1)
    assert decision.reasons[1].endswith("without them nothing is left of acc")
    assert decision.numbers[0]["value_without_contaminated"] is None
    write_report(report_of(data, root, None), tmp_path / "unknown.json")
    plain = decide_from_reports(gate, tmp_path / "unknown.json", {}, look=1)
    assert plain.reasons[1].startswith("whether items of fcc_amateur_extra stand in the training data is not known")
    assert (plain.decision, plain.findings) == (decision.decision, decision.findings)

"""The needle drill in short: its texts, a run too small to learn anything, and what is said of it."""

from pathlib import Path

import pytest

from eval.benchmarks.local_text import HELD_OUT_FRACTION
from eval.benchmarks.needle_data import short_needle_items
from tests.drills.needle import BENCHMARK, Budget, Found, found_in, train, unlearned
from tests.drills.needle_text import write_texts
from tests.integration.reading import ledger, records
from training.config.data_schema import SourceConfig, SourceKind
from training.data.corpus import is_held_out, read_documents

TINY = Budget(short_steps=4, long_steps=2, short_documents=300, long_documents=60)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("needle"), TINY, seed=1)


def test_both_training_stages_run_and_every_length_is_measured_after_each(run_directory: Path) -> None:
    assert [stage["name"] for stage in ledger(run_directory)["stages"]] == ["short", "long_context"]
    assert len(records(run_directory, "step")) == TINY.short_steps + TINY.long_steps
    measured = records(run_directory, "eval")
    assert [record["stage"] for record in measured] == ["start", "short", "long_context"]
    assert {record["metrics"][f"{BENCHMARK}/items"] for record in measured} == {len(short_needle_items())}


def test_a_model_that_has_learned_nothing_finds_nothing(run_directory: Path) -> None:
    found = found_in(run_directory)
    assert set(found.after.values()) == {0.0}
    assert len(unlearned(found)) == len(found.after)


def test_the_claim_needs_every_length_after_the_stage_and_the_longest_not_before() -> None:
    before, after = {100: 1.0, 1500: 0.0}, {100: 1.0, 1500: 0.95}
    assert unlearned(Found(before=before, after=after)) == []
    assert len(unlearned(Found(before=before, after=after | {100: 0.85}))) == 1
    assert len(unlearned(Found(before=before | {1500: 0.5}, after=after))) == 1


def test_no_measured_fact_and_no_held_out_verse_is_trained_on(tmp_path: Path) -> None:
    write_texts(tmp_path / "a", num_documents=300, longest_characters=500, seed=0)
    write_texts(tmp_path / "b", num_documents=300, longest_characters=500, seed=0)
    texts = [path.read_text() for path in sorted((tmp_path / "a").iterdir())]
    assert texts == [path.read_text() for path in sorted((tmp_path / "b").iterdir())]
    facts = {f"{item['start']} {answer}." for item in short_needle_items() for answer in item["answers"]}
    verses = _verses()
    for_measuring = verses[True] - verses[False]  # some stand in several chapters
    for text in texts:
        *lines, blank, question = text.splitlines()
        assert blank == ""
        assert lines.count(question) == 1
        assert question not in facts
        assert not set(lines) & for_measuring


def _verses() -> dict[bool, set[str]]:
    """Return the verses of chapters that are, and that are not, kept out of training."""
    verses: dict[bool, set[str]] = {True: set(), False: set()}
    for document in read_documents("kjv", SourceConfig(kind=SourceKind.kjv)):
        verses[is_held_out(document.id, HELD_OUT_FRACTION)] |= set(document.text.splitlines())
    return verses

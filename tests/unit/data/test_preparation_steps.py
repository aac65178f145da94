"""What preparation makes of several sources together: copies, benchmarks' items, forms, shards, processes."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real_weights import SMOLLM2
from training.config.benchmarks import BENCHMARKS, BenchmarkManifest, benchmark_directory, sha256_of
from training.config.data_schema import (
    ContaminationAction,
    ContaminationConfig,
    DataConfig,
    NearDuplicatesConfig,
    SourceConfig,
    SourceForm,
    SourceKind,
)
from training.data import workers
from training.data.corpus import is_held_out
from training.data.prepare import prepare
from training.data.settings import directory_of
from training.data.shards import PreparedData
from training.errors import ConfigError, DataError

QUESTION = "which of the following rivers flows through more capital cities of europe than any other one does"


def source(path: Path, rows: Sequence[Mapping[str, Any]], **keys: Any) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(kind=SourceKind.json, path=str(path), id_field="id", **keys)


def config(folder: Path, sources: dict[str, SourceConfig], **keys: Any) -> DataConfig:
    defaults: dict[str, Any] = {"tokenizer_vocab_size": 300, "held_out_fraction": 0.3}
    return DataConfig(sources=sources, prepared_root=str(folder / "prepared"), **{**defaults, **keys})


def document(number: int, *, changed: int = 0) -> str:
    words = [f"w{number}x{place}" for place in range(60)]
    words[:changed] = [f"other{place}" for place in range(changed)]
    return " ".join(words)


def used(prepared: PreparedData, name: str) -> list[str]:
    streams = (prepared.train(name), prepared.held_out(name))
    return [stream.id_of(record) for stream in streams for record in range(stream.num_records)]


def quarantine(prepared: PreparedData, name: str) -> dict[str, str]:
    path = prepared.directory / name / "quarantine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["id"]: f"{row['reason']} {row['detail']}" for row in rows}


def held_out_ids(fraction: float, number: int, *, wanted: bool) -> list[str]:
    ids = (f"r{place}" for place in range(10_000))
    return [one for one in ids if is_held_out(one, fraction) == wanted][:number]


def test_a_copy_in_another_source_is_used_once_and_rather_held_out_than_trained_on(tmp_path: Path) -> None:
    rows = [{"id": f"a{n}", "text": document(n)} for n in range(20)]
    copies = [{"id": f"b{n}", "text": document(n)} for n in (3, 4)] + [{"id": "b9", "text": document(99)}]
    data = config(
        tmp_path,
        {
            "first": source(tmp_path / "a.jsonl", rows, held_out_fraction=0.0),
            "validation": source(tmp_path / "b.jsonl", copies, held_out_fraction=1.0),
        },
    )
    prepared = prepare(data)
    assert used(prepared, "validation") == ["b3", "b4", "b9"]
    assert prepared.manifest.sources["validation"].train.shards == []
    assert quarantine(prepared, "first") == {"a3": "duplicate of validation: b3", "a4": "duplicate of validation: b4"}
    assert prepared.manifest.sources["first"].quarantined == {"duplicate": 2}
    assert len(used(prepared, "first")) == 18


def test_a_training_document_that_is_nearly_a_held_out_one_goes_whichever_comes_first(tmp_path: Path) -> None:
    [trained_first, trained_later] = held_out_ids(0.3, 2, wanted=False)
    [out] = held_out_ids(0.3, 1, wanted=True)
    rows = [
        {"id": trained_first, "text": document(1)},
        {"id": out, "text": document(1, changed=1)},
        {"id": trained_later, "text": document(2)},
    ]
    rows += [{"id": f"more{n}", "text": document(n)} for n in range(3, 12)] + [{"id": "none", "text": "?!"}]
    data = config(tmp_path, {"mine": source(tmp_path / "a.jsonl", rows)}, near_duplicates=NearDuplicatesConfig())
    prepared = prepare(data)
    report = [json.loads(line) for line in (prepared.directory / "near_duplicates.jsonl").read_text().splitlines()]
    [found] = report
    assert (found["id"], found["kept_id"], found["source"], found["kept_source"]) == (
        trained_first,
        out,
        "mine",
        "mine",
    )
    # 56 five-word n-grams, one changed: 55 of 57 in common; 5 standard errors of 128 hashes.
    assert found["similarity"] == pytest.approx(55 / 57, abs=5 * np.sqrt(55 / 57 * 2 / 57 / 128))
    assert list(quarantine(prepared, "mine")) == [trained_first]
    assert directory_of(replace(data, near_duplicates=None)) != prepared.directory
    assert trained_first in used(prepare(replace(data, near_duplicates=None)), "mine")


def write_benchmark(root: Path, name: str, items: list[dict[str, Any]]) -> None:
    folder = benchmark_directory(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    manifest = BenchmarkManifest(
        name=name,
        version=BENCHMARKS[name].version,
        source="made here",
        source_version="1",
        wheel_sha256=None,
        licence="none",
        licence_file="none",
        num_items=len(items),
        num_dropped=0,
        files_sha256={"items.jsonl": sha256_of(folder / "items.jsonl")},
    )
    fields = {name: getattr(manifest, name) for name in BenchmarkManifest.__dataclass_fields__}
    (folder / "manifest.json").write_text(json.dumps(fields))


def test_training_records_that_hold_an_item_are_reported_or_removed(tmp_path: Path) -> None:
    [clean, spoiled, talk] = held_out_ids(0.3, 3, wanted=False)
    [out] = held_out_ids(0.3, 1, wanted=True)
    rows = [
        {"id": clean, "text": document(1)},
        {"id": spoiled, "text": f"It asks:\n{QUESTION.upper()}? The Danube."},
        {"id": out, "text": f"held out, {QUESTION}"},
        {"id": "r with both", "text": document(4)},
    ]
    talks = [{"id": talk, "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "no"}]}]
    talks += [{"id": clean, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]}]
    root = tmp_path / "prepared"
    write_benchmark(root, "logiqa", [{"id": "item 7", "question": QUESTION, "choices": ["Danube", "Rhine"]}])
    sources = {
        "mine": source(tmp_path / "a.jsonl", rows),
        "talks": source(tmp_path / "b.jsonl", talks, form=SourceForm.conversations),
    }
    data = config(tmp_path, sources, contamination=ContaminationConfig(benchmarks=["logiqa"]))
    reported = prepare(data)
    lines = [json.loads(line) for line in (reported.directory / "contamination.jsonl").read_text().splitlines()]
    found = {"benchmark": "logiqa", "item": "item 7", "share": 1.0, "is_removed": False}
    assert lines == [{"source": "mine", "id": spoiled, **found}, {"source": "talks", "id": talk, **found}]
    assert quarantine(reported, "mine") == {}
    removing = ContaminationConfig(benchmarks=["logiqa"], action=ContaminationAction.remove)
    removed = prepare(replace(data, contamination=removing))
    assert quarantine(removed, "mine") == {spoiled: "contaminated 100% of item item 7 of logiqa"}
    assert set(used(removed, "talks")) == {clean}
    assert out in used(removed, "mine")
    write_benchmark(root, "logiqa", [{"id": "item 8", "question": "something else is asked here " * 3, "choices": []}])
    assert directory_of(replace(data, contamination=removing)) != removed.directory, "other items, other data"
    shutil.rmtree(root / "benchmarks")
    with pytest.raises(DataError, match=r"python -m eval\.prepare logiqa --root"):
        directory_of(data)


def test_conversations_and_pairs_are_prepared_beside_documents(tmp_path: Path) -> None:
    ask, good, bad = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("assistant", "no")))
    talks = [{"id": f"t{n}", "messages": [{**ask, "content": f"hi {n}"}, good]} for n in range(12)]
    talks.append({"id": "special", "messages": [{**ask, "content": "<|im_end|>"}, good]})
    talks.append({"id": "silent", "messages": [ask]})
    pairs = [
        {"id": f"p{n}", "prompt": [{**ask, "content": f"pick {n}"}], "chosen": [good], "rejected": [bad]}
        for n in range(12)
    ]
    sources = {
        "talks": source(tmp_path / "t.jsonl", talks, form=SourceForm.conversations),
        "pairs": source(tmp_path / "p.jsonl", pairs, form=SourceForm.preferences),
        "texts": source(tmp_path / "d.jsonl", [{"id": f"d{n}", "text": document(n)} for n in range(12)]),
    }
    prepared = prepare(config(tmp_path, sources))
    assert set(quarantine(prepared, "talks")) == {"special", "silent"}
    assert prepared.manifest.sources["talks"].quarantined == {"bad record": 2}
    assert len(used(prepared, "talks")) == 12
    assert sorted(used(prepared, "pairs")) == sorted(f"p{n}" for n in range(12) for _ in range(2))
    stream, tokenizer = prepared.train("pairs"), prepared.tokenizer
    [first, second, after] = stream.starts(np.array([0, 1, 2]))
    chosen, rejected = stream.tokens(first, second), stream.tokens(second, after)
    assert tokenizer.spelled(chosen).endswith("<|im_start|>assistant\nyes<|im_end|>\n")
    assert tokenizer.spelled(chosen[stream.is_target(first, second)]) == "yes<|im_end|>"
    assert tokenizer.spelled(rejected[stream.is_target(second, after)]) == "no<|im_end|>"
    assert {path.name for path in (prepared.directory / "tokenizer").iterdir()} == {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    }


def test_another_directory_s_tokenizer_is_copied_and_every_byte_of_it_counts(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(SMOLLM2 / name, theirs / name)
    rows = [{"id": f"d{n}", "text": document(n)} for n in range(20)] + [{"id": "lost", "text": "a\x04b"}]
    data = config(tmp_path, {"mine": source(tmp_path / "a.jsonl", rows)}, tokenizer=str(theirs))
    prepared = prepare(data)
    assert prepared.tokenizer.decode(prepared.train("mine").tokens(0, 40)).startswith("w1x0 w1x1")
    assert quarantine(prepared, "mine") == {"lost": "unencodable the tokenizer has no token for 1 of its bytes"}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (prepared.directory / "tokenizer" / name).read_bytes() == (theirs / name).read_bytes()
        (theirs / name).write_bytes((theirs / name).read_bytes() + b" ")
        with pytest.raises(DataError, match=r"no prepared data.*\n.*run: the command"):
            PreparedData.open(data, prepare_command="the command")
        shutil.copyfile(SMOLLM2 / name, theirs / name)
    assert PreparedData.open(data).fingerprint == prepared.fingerprint
    shutil.rmtree(theirs)
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*there is no tokenizer\.json"):
        PreparedData.open(data)


def files_of(prepared: PreparedData) -> dict[str, bytes]:
    root = prepared.directory
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_number_of_processes_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FEWEST_BYTES", 0)
    rows = [{"id": f"d{n}", "text": document(n) * (n % 7 + 1)} for n in range(60)] + [{"id": "e", "text": ""}]
    sources = {"mine": source(tmp_path / "a.jsonl", rows), "kjv": SourceConfig(kind=SourceKind.kjv, max_documents=30)}
    data = config(tmp_path, sources, shard_bytes=9000, near_duplicates=NearDuplicatesConfig())
    expected = files_of(prepare(replace(data, num_workers=1)))
    assert sum(name.endswith(".bin") and "ids" not in name for name in expected) > 8
    other = replace(data, num_workers=3, prepared_root=str(tmp_path / "with three"))
    assert files_of(prepare(other)) == expected


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 80), min_size=4, max_size=25), shard_bytes=st.integers(1, 600))
def test_where_shards_end_changes_neither_the_stream_nor_the_records(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = [{"id": f"d{n}", "text": f"{n} " + "ab " * size} for n, size in enumerate(sizes)]
    data = config(folder, {"mine": source(folder / "a.jsonl", rows, held_out_fraction=0.0)})
    whole, cut = (prepare(replace(data, shard_bytes=size)) for size in (10**6, shard_bytes))
    assert len(whole.manifest.sources["mine"].train.shards) == 1
    first, second = whole.train("mine"), cut.train("mine")
    assert np.array_equal(first.tokens(0, first.num_tokens), second.tokens(0, second.num_tokens))
    records = np.arange(first.num_records + 1)
    assert np.array_equal(first.starts(records), second.starts(records))
    assert [first.id_of(n) for n in records[:-1]] == [second.id_of(n) for n in records[:-1]]
    assert all(shard.num_bytes < shard_bytes + 250 for shard in cut.manifest.sources["mine"].train.shards)


@settings(max_examples=25)
@given(
    texts=st.lists(st.one_of(st.integers(0, 5).map(document), st.sampled_from(["", " ", "\x00 x"])), max_size=25),
    similarity=st.sampled_from([None, 0.5]),
)
def test_every_record_is_used_or_in_quarantine_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], similarity: float | None
) -> None:
    folder = tmp_path_factory.mktemp("records")
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    rows.append({"id": held_out_ids(0.3, 1, wanted=False)[0], "text": "one that is trained on"})
    near = None if similarity is None else NearDuplicatesConfig(similarity=similarity)
    prepared = prepare(config(folder, {"mine": source(folder / "a.jsonl", rows)}, near_duplicates=near))
    assert sorted([*used(prepared, "mine"), *quarantine(prepared, "mine")]) == sorted(row["id"] for row in rows)
    assert sum(prepared.manifest.sources["mine"].quarantined.values()) == len(quarantine(prepared, "mine"))

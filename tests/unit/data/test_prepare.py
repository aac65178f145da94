import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from training.config.data_schema import DataConfig, PrepareData, SourceConfig, SourceKind
from training.data.prepare import ensure, prepare
from training.data.progress import Reporter
from training.data.settings import directory_of
from training.data.shards import PreparedData
from training.errors import ConfigError, DataError, Stopped, StorageError

KILL_AND_LOOK = """
import os, signal, sys, time
from training.config.data_schema import DataConfig, SourceConfig, SourceKind
from training.data.settings import directory_of
from training.data.prepare import prepare
from training.data.shards import PreparedData

def data(root):
    sources = {"bible": SourceConfig(kind=SourceKind.kjv, max_documents=20)}
    return DataConfig(sources=sources, tokenizer_vocab_size=300, held_out_fraction=0.2, prepared_root=root)

def in_child(root):
    pid = os.fork()
    if pid == 0:
        prepare(data(root))
        os._exit(0)
    return pid

start = time.perf_counter()
assert os.waitpid(in_child(sys.argv[1] + "/whole"), 0)[1] == 0
seconds = time.perf_counter() - start
for attempt in range(8):
    root = f"{sys.argv[1]}/{attempt}"
    pid = in_child(root)
    time.sleep(seconds * (attempt + 0.5) / 8)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if directory_of(data(root)).exists():
        PreparedData.open(data(root), verify=True)
        print("whole")
    else:
        print("nothing", len(os.listdir(root)) if os.path.isdir(root) else 0)
        assert all(name.startswith(".preparing-") for name in os.listdir(root)) if os.path.isdir(root) else True
    assert os.waitpid(in_child(root), 0)[1] == 0
    PreparedData.open(data(root), verify=True)
    assert os.listdir(root) == [directory_of(data(root)).name], os.listdir(root)
"""

PREPARE = """
import sys
from training.config.data_schema import DataConfig, SourceConfig, SourceKind
from training.data.prepare import prepare
sources = {"bible": SourceConfig(kind=SourceKind.kjv, max_documents=40)}
data = DataConfig(sources=sources, tokenizer_vocab_size=300, held_out_fraction=0.2, prepared_root=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(prepare(data).fingerprint)
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"Document {i} says {i * i}.\n" * 5)
    return folder


@pytest.fixture
def data(texts: Path, tmp_path: Path) -> DataConfig:
    source = SourceConfig(kind=SourceKind.text_files, path=str(texts))
    return DataConfig(
        sources={"mine": source},
        tokenizer_vocab_size=300,
        held_out_fraction=0.2,
        prepared_root=str(tmp_path / "prepared"),
    )


def test_a_kill_at_any_moment_leaves_nothing_or_a_whole_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_AND_LOOK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    outcomes = result.stdout.splitlines()
    assert "nothing 1" in outcomes, "no kill hit a writer at work, so the test showed nothing"


def test_two_writers_at_the_same_time_both_end_with_the_same_data(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(list(tmp_path.iterdir())) == 1


def test_preparing_that_is_ended_from_outside_can_go_on_and_comes_to_the_same(data: DataConfig, tmp_path: Path) -> None:
    calls = 0

    def end_at(limit: int) -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise Stopped("told to stop")

    whole = ensure(replace(data, prepared_root=str(tmp_path / "whole")), between_batches=lambda: end_at(-1))
    needed, calls = calls, 0
    assert needed >= 5, "while sources are read, records selected, the tokenizer trained, and for both splits"
    for limit in range(1, needed + 1):
        calls = 0
        root = tmp_path / f"ended at {limit}"
        with pytest.raises(Stopped):
            ensure(replace(data, prepared_root=str(root)), between_batches=lambda limit=limit: end_at(limit))
        assert [path.name for path in root.iterdir()] == [f".preparing-{whole.directory.name}"]
        again = ensure(replace(data, prepared_root=str(root)))
        assert list(root.iterdir()) == [again.directory]
        assert (again.directory / "manifest.json").read_bytes() == (whole.directory / "manifest.json").read_bytes()


def test_preparing_again_writes_nothing(data: DataConfig) -> None:
    first = prepare(data)
    written = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert prepare(data).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == written


def test_preparing_is_deterministic(data: DataConfig, tmp_path: Path) -> None:
    other = prepare(replace(data, prepared_root=str(tmp_path / "other")))
    first = prepare(data)
    assert first.fingerprint == other.fingerprint
    assert (first.directory / "manifest.json").read_bytes() == (other.directory / "manifest.json").read_bytes()


def test_preparing_mends_damage_and_ensure_does_not(data: DataConfig) -> None:
    prepared = prepare(data)
    shard = prepared.directory / "mine" / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(DataError, match="damaged"):
        ensure(data)
    assert prepare(data).fingerprint == prepared.fingerprint
    assert shard.read_bytes() == content
    assert [path.name for path in prepared.directory.parent.iterdir()] == [prepared.directory.name]


def test_a_changed_input_file_asks_for_other_data(data: DataConfig, texts: Path) -> None:
    before = prepare(data)
    (texts / "00.txt").write_text("changed")
    after = prepare(data)
    assert after.directory != before.directory
    assert after.fingerprint != before.fingerprint


def test_a_moved_input_folder_is_the_same_data(data: DataConfig, texts: Path) -> None:
    before = directory_of(data)
    texts.rename(texts.parent / "moved")
    source = replace(data.sources["mine"], path=str(texts.parent / "moved"))
    assert directory_of(replace(data, sources={"mine": source})) == before


def test_ensure_prepares_only_when_it_may(data: DataConfig) -> None:
    with pytest.raises(DataError, match="run: the command"):
        ensure(replace(data, prepare=PrepareData.require), prepare_command="the command")
    prepared = ensure(data)
    assert ensure(replace(data, prepare=PrepareData.require)).fingerprint == prepared.fingerprint


def test_the_tokenizer_has_not_seen_the_held_out_documents(data: DataConfig, texts: Path) -> None:
    before = prepare(data)
    held_out = before.held_out_documents("mine")
    assert held_out
    for i, document in enumerate(held_out):
        (texts / document.id.removeprefix("text_files/")).write_text(f"{i} ZQXJ" * 500)
    after = prepare(data)
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.fingerprint != before.fingerprint


def test_the_work_of_a_dead_writer_is_taken_over_and_a_living_one_s_is_waited_for(data: DataConfig) -> None:
    work = directory_of(data).with_name(f".preparing-{directory_of(data).name}")
    work.mkdir(parents=True)
    code = "import sys, time; from pathlib import Path; from training.lease import Lease;"
    code += "Lease.take(Path(sys.argv[1])); print('taken', flush=True); time.sleep(100)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    said: list[str] = []

    class Listener(Reporter):
        def say(self, sentence: str) -> None:
            said.append(sentence)
            holder.kill()
            holder.wait()

    prepared = prepare(data, reporter=Listener())
    assert said == [f"waiting for process {holder.pid} on {os.uname().nodename}, which prepares the same data"]
    assert list(Path(data.prepared_root).iterdir()) == [prepared.directory]


def test_a_root_that_cannot_be_written_is_a_storage_error(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"data\.prepared_root=.*file/prepared"):
        prepare(replace(data, prepared_root=str(tmp_path / "file" / "prepared")))


def test_a_failed_writer_leaves_nothing(data: DataConfig) -> None:
    with pytest.raises(DataError, match="all its records that can be used are held out"):
        prepare(replace(data, held_out_fraction=0.9999))
    assert list(Path(data.prepared_root).iterdir()) == []


def test_a_source_name_that_is_no_folder_name_is_refused(data: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources=\.\./mine"):
        prepare(replace(data, sources={"../mine": data.sources["mine"]}))


def test_data_without_held_out_documents_can_be_opened(data: DataConfig) -> None:
    prepared = prepare(replace(data, held_out_fraction=0.0))
    assert prepared.held_out_documents("mine") == []
    assert prepared.manifest.sources["mine"].train.num_records == 20
    assert prepared.manifest.sources["mine"].held_out.shards == []
    shutil.rmtree(prepared.directory)
    with pytest.raises(DataError, match="no prepared data"):
        PreparedData.open(replace(data, held_out_fraction=0.0))

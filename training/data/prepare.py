"""Builds prepared data, on all cores, and commits it by one rename.

The steps, each of which keeps what it has finished when it is interrupted: sources are read into chunks, chunks are
looked through for near duplicates and benchmarks, records are selected, the tokenizer is trained or copied, shards are
written. What comes out depends on the config and the inputs alone.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config.data_schema import DataConfig, PrepareData, SourceForm
from training.data.chunk_files import Piece, open_chunk
from training.data.chunks import Chunk, read_source
from training.data.corpus import LICENCES
from training.data.encoding import EncodedShard, ShardTask, encode_documents, encoded_shard, shard_key
from training.data.examination import Examination, Examined, examine, examined, texts_of
from training.data.manifest import FileEntry, Manifest, SourceEntry, SplitEntry, hash_file, hash_json
from training.data.progress import Reporter
from training.data.selection import Selection, select
from training.data.settings import TOKENIZER_FOLDER, determining_settings, directory_of, has_chat
from training.data.shard_files import shard_name, token_dtype
from training.data.shards import PREPARE_COMMAND, PreparedData
from training.data.tokenizer import TOKENIZER_FILES, Tokenizer, train_tokenizer
from training.data.tokenizer_directory import SETTINGS_FILE, TEMPLATE_FILE
from training.data.work_folder import WorkFolder, remove_finished, working_on
from training.data.workers import Work, available_cores, run_all
from training.errors import DataError, StorageError

_LOG = logging.getLogger(__name__)
_TEXTS_PER_CALL = 64


def ensure(
    data: DataConfig, *, prepare_command: str = PREPARE_COMMAND, between_batches: Callable[[], None] = lambda: None
) -> PreparedData:
    """Return the prepared data of a config; prepares it if it is missing and `data.prepare` is auto.

    Damaged data is never replaced here, since a job on another node may be reading it. `between_batches` is called
    again and again while data is prepared, and may raise to end that; what is finished is then kept.

    Raises:
        DataError: it is damaged, or missing while `data.prepare` is require; the message holds `prepare_command`.
        StorageError: it cannot be written.
    """
    if data.prepare is PrepareData.auto and not directory_of(data).exists():
        return prepare(data, between_batches=between_batches)
    return PreparedData.open(data, prepare_command=prepare_command)


def prepare(
    data: DataConfig, *, between_batches: Callable[[], None] = lambda: None, reporter: Reporter | None = None
) -> PreparedData:
    """Return the prepared data of a config, built unless it is already there and whole. Damaged data is replaced.

    Raises:
        ConfigError: a source names no file, or the tokenizer does not fit.
        DataError: a source has no record to train on, or cannot be read.
        StorageError: `data.prepared_root` cannot be written.
    """
    target = directory_of(data)
    if _is_whole(data, target):
        remove_finished(target)
        return PreparedData.open(data)
    reporter = reporter or Reporter()

    def wait(sentence: str) -> None:
        reporter.say(sentence)
        between_batches()

    try:
        with working_on(target, is_done=lambda: _is_whole(data, target), wait=wait) as work:
            if work is not None:
                _Preparation(data, work, between_batches, reporter).build()
                if directory_of(data) != target:
                    raise DataError(
                        "data.sources: files changed while they were read\n  -> prepare again when they rest"
                    )
                work.commit(target)
    except OSError as error:
        raise StorageError(
            f"data.prepared_root={data.prepared_root}: it cannot be written: {error}\n"
            "  -> free space, mend its permissions, or set data.prepared_root to another folder"
        ) from error
    return PreparedData.open(data)


def _is_whole(data: DataConfig, target: Path) -> bool:
    if not target.exists():
        return False
    try:
        PreparedData.open(data, verify=True)
    except DataError:  # damaged: built again, and replaced once the new folder is whole
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Preparation:
    """One preparation at work."""

    data: DataConfig
    work: WorkFolder
    between_batches: Callable[[], None]
    reporter: Reporter

    def build(self) -> None:
        """Write the whole folder."""
        sources = self._read()
        selection = select(self.data, sources, self._examine(sources), self.between_batches)
        tokenizer = self._tokenizer(selection)
        shards = self._encode(sources, selection, tokenizer)
        self._finish(selection, tokenizer, shards)

    def keep_alive(self, num_bytes: int = 0) -> None:
        """Count bytes that are done, and let others end this."""
        self.reporter.advance(num_bytes)
        self.between_batches()

    @property
    def num_workers(self) -> int:
        """Processes that may be used."""
        return self.data.num_workers or available_cores()

    def _read(self) -> dict[str, list[Chunk]]:
        self.reporter.begin("reading", None)
        return {
            name: read_source(
                name,
                self.data.sources[name],
                self.work.read / name,
                chunk_bytes=self.data.shard_bytes,
                keep_alive=self.keep_alive,
            )
            for name in sorted(self.data.sources)
        }

    def _examine(self, sources: Mapping[str, Sequence[Chunk]]) -> dict[str, list[Examined]]:
        if self.data.near_duplicates is None and self.data.contamination is None:
            return {}
        tasks = {
            name: [
                Examination(
                    chunk=chunk.path,
                    form=self.data.sources[name].form,
                    near_duplicates=self.data.near_duplicates,
                    benchmarks=tuple(self.data.contamination.benchmarks) if self.data.contamination else (),
                    prepared_root=Path(self.data.prepared_root),
                )
                for chunk in chunks
            ]
            for name, chunks in sources.items()
        }
        work = [
            Work(function=examine, argument=task, num_bytes=chunk.num_bytes)
            for name, chunks in sources.items()
            for task, chunk in zip(tasks[name], chunks, strict=True)
        ]
        self._run("comparing", work)
        return {name: [_found(task) for task in of_source] for name, of_source in tasks.items()}

    def _run(self, what: str, work: Sequence[Work]) -> None:
        self.reporter.begin(what, sum(one.num_bytes for one in work))
        run_all(work, num_workers=self.num_workers, keep_alive=self.keep_alive)

    def _tokenizer(self, selection: Selection) -> Tokenizer:
        """Return the tokenizer, whose files are in the folder then."""
        directory = self.work.data / TOKENIZER_FOLDER
        if self.data.tokenizer is not None:
            directory.mkdir(parents=True, exist_ok=True)
            for name in TOKENIZER_FILES:
                if (Path(self.data.tokenizer) / name).is_file():
                    shutil.copyfile(Path(self.data.tokenizer) / name, directory / name)
        elif not directory.exists():
            self._train_tokenizer(directory, selection)
        tokenizer = Tokenizer.load(directory, self.data.end_of_document_token)
        if has_chat(self.data):
            from training.data.chat import ChatTemplate  # transformers, as below

            ChatTemplate.load(directory)  # says what is wrong with it before anything is encoded
        return tokenizer

    def _train_tokenizer(self, directory: Path, selection: Selection) -> None:
        work = directory.with_name(f".{directory.name}")
        shutil.rmtree(work, ignore_errors=True)
        template, special_tokens = _chat_of_trained(self.data)
        self.reporter.begin("training the tokenizer", sum(piece.num_bytes for _, piece in selection.training_pieces()))
        train_tokenizer(
            work, self._training_texts(selection), self.data.tokenizer_vocab_size, special_tokens=special_tokens
        )
        if template is not None:
            (work / TEMPLATE_FILE).write_text(template, encoding="utf-8")
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special_tokens[-1]}
            (work / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        os.rename(work, directory)

    def _training_texts(self, selection: Selection) -> Iterator[str]:
        for source, piece in selection.training_pieces():
            is_document = self.data.sources[source].form is SourceForm.documents
            contents = open_chunk(piece.chunk).column("content")
            for first in range(0, len(piece.records), _TEXTS_PER_CALL):
                some = contents.take(piece.records[first : first + _TEXTS_PER_CALL]).to_pylist()
                self.keep_alive(sum(map(len, some)))
                for content in some:
                    yield from [content.decode()] if is_document else texts_of(content)

    def _encode(
        self, sources: Mapping[str, Sequence[Chunk]], selection: Selection, tokenizer: Tokenizer
    ) -> dict[str, dict[str, list[EncodedShard]]]:
        hashes = {chunk.path: chunk.sha256 for chunks in sources.values() for chunk in chunks}
        files = {name: hash_file(path) for name, path in _tokenizer_files(tokenizer.directory)}
        fingerprint = hash_json([files, tokenizer.end_of_document_token])

        def task(source: str, split: str, number: int, pieces: list[Piece]) -> ShardTask:
            return ShardTask(
                source=source,
                name=shard_name(split, number),
                pieces=pieces,
                folder=self.work.data / source,
                commits=self.work.shards,
                tokenizer=tokenizer.directory,
                end_of_document_token=tokenizer.end_of_document_token,
                key=shard_key(pieces, [hashes[piece.chunk] for piece in pieces], fingerprint),
            )

        tasks = {
            source: {
                split: [task(source, split, number, pieces) for number, pieces in enumerate(shards)]
                for split, shards in splits.items()
            }
            for source, splits in selection.shards.items()
        }
        self._run(
            "encoding",
            [
                Work(function=_encoder(self.data.sources[source].form), argument=one, num_bytes=one.num_bytes)
                for source, splits in tasks.items()
                for of_split in splits.values()
                for one in of_split
            ],
        )
        return {
            source: {split: [_written(one) for one in of_split] for split, of_split in splits.items()}
            for source, splits in tasks.items()
        }

    def _finish(
        self, selection: Selection, tokenizer: Tokenizer, shards: Mapping[str, Mapping[str, Sequence[EncodedShard]]]
    ) -> None:
        """Write the reports and the manifest."""
        files = {f"{TOKENIZER_FOLDER}/{name}": path for name, path in _tokenizer_files(tokenizer.directory)}
        entries: dict[str, FileEntry] = {}
        sources: dict[str, SourceEntry] = {}
        for name, splits in shards.items():
            written = [shard for split in splits.values() for shard in split]
            entries |= {f"{name}/{file}": entry for shard in written for file, entry in shard.files.items()}
            quarantined = [*selection.quarantined[name], *(one for shard in written for one in shard.quarantined)]
            files |= self._report(f"{name}/quarantine.jsonl", quarantined)
            source = self.data.sources[name]
            sources[name] = SourceEntry(
                form=source.form,
                licence=source.licence or LICENCES.get(source.kind, "as the source's owner grants"),
                tags=list(source.tags),
                quarantined=dict(sorted(Counter(one["reason"] for one in quarantined).items())),
                **{split: SplitEntry(shards=[one.counts for one in splits[split]]) for split in ("train", "held_out")},
            )
            _check_encoded(self.data, name, sources[name])
        files |= self._report("near_duplicates.jsonl", selection.near_duplicates)
        files |= self._report("contamination.jsonl", selection.contamination)
        entries |= {
            name: FileEntry(num_bytes=path.stat().st_size, sha256=hash_file(path)) for name, path in files.items()
        }
        manifest = Manifest(
            settings=determining_settings(self.data),
            dtype=token_dtype(tokenizer.vocab_size).name,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            end_of_document_token=tokenizer.end_of_document_token,
            sources=sources,
            files=dict(sorted(entries.items())),
        )
        for path in list(self.work.data.rglob("*")):  # of a code that wrote other files before it was interrupted
            if path.is_file() and path.relative_to(self.work.data).as_posix() not in entries:
                path.unlink()
        (self.work.data / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")

    def _report(self, name: str, rows: Sequence[Mapping[str, object]]) -> dict[str, Path]:
        """Write a report as JSON Lines, and return its path by name; nothing if there is nothing to say."""
        if not rows:
            return {}
        path = self.work.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return {name: path}


def _chat_of_trained(data: DataConfig) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template and its special tokens, the last one ending turns, of a tokenizer that is trained."""
    if not has_chat(data):
        return None, ()
    from training.data.chat import CHATML, CHATML_TOKENS  # transformers, a second that documents need not spend

    return CHATML, CHATML_TOKENS


def _encoder(form: SourceForm) -> Callable[[ShardTask, Callable[[], None]], None]:
    if form is SourceForm.documents:
        return encode_documents
    from training.data.encoding_chat import encode_conversations, encode_preferences  # transformers, as above

    return encode_conversations if form is SourceForm.conversations else encode_preferences


def _tokenizer_files(directory: Path) -> list[tuple[str, Path]]:
    return [(name, directory / name) for name in TOKENIZER_FILES if (directory / name).is_file()]


def _found(task: Examination) -> Examined:
    found = examined(task)
    assert found is not None, f"{task.chunk} was examined and nothing is there"
    return found


def _written(task: ShardTask) -> EncodedShard:
    shard = encoded_shard(task)
    assert shard is not None, f"{task.name} of {task.source} was written and is not there"
    return shard


def _check_encoded(data: DataConfig, name: str, source: SourceEntry) -> None:
    """Check that a source still has records after its messages were encoded."""
    wanted = source.held_out if data.held_out_fraction_of(name) == 1 else source.train
    if not wanted.num_records:
        told = ", ".join(f"{count} {reason}" for reason, count in source.quarantined.items())
        raise DataError(
            f"data.sources.{name}: none of its records can be encoded ({told})\n"
            "  -> mend its messages; the chat template is that of data.tokenizer"
        )

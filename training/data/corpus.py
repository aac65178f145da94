"""Documents of a source, and which of them are held out of training.

A document's id names its kind and its place, never the source's name in a config: the same text is held out under
whatever name it is read.
"""

import hashlib
import lzma
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

from datasets import Dataset, Features, Value, disable_progress_bars
from datasets.exceptions import DatasetGenerationError

from training.config.data_schema import SourceConfig, SourceKind
from training.errors import AutarkyError, ConfigError, DataError

KJV_FILE = Path(__file__).parent / "corpora" / "kjv.txt.xz"

LICENCES = {
    SourceKind.kjv: "public domain (UK: Crown letters patent)",
    SourceKind.python_stdlib: "PSF-2.0",
    SourceKind.text_files: "as the files' owner grants",
}

_STDLIB_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_FEATURES = Features({"id": Value("string"), "text": Value("large_string")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text with a name that is stable over machines and configs."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The documents of a source."""

    documents: Dataset
    """Columns id and text, in the source's own order."""
    skipped: dict[str, int]
    """Files that gave no document, by reason: undecodable (not UTF-8), empty, duplicate (of an earlier document)."""


def is_held_out(document_id: str, fraction: float) -> bool:
    """Return whether a document is kept out of training: a pure function of its id, the same on every machine."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def read_documents(name: str, source: SourceConfig, *, cache_dir: Path) -> Corpus:
    """Return the documents of a source as a memory-mapped dataset, without duplicates and empty texts.

    Args:
        name: the source's name in `data.sources`, for messages.
        source: what to read.
        cache_dir: folder for the dataset's Arrow file, which the caller removes when done with the dataset.

    Raises:
        ConfigError: the source names no file.
        DataError: it has no document, or a file cannot be read.
    """
    skipped: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, str]]:
        empty = True
        for document in islice(_distinct(_documents(name, source, skipped), skipped), source.max_documents):
            yield {"id": document.id, "text": document.text}
            empty = False
        if empty:
            raise DataError(
                f"data.sources.{name}: it has no document (skipped: {dict(skipped)})\n"
                "  -> name files with UTF-8 text, or raise max_documents"
            )

    disable_progress_bars()
    try:
        # A fingerprint of our own keeps the library from serialising the generator to name its cache.
        documents = Dataset.from_generator(rows, features=_FEATURES, cache_dir=str(cache_dir), fingerprint=name)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, AutarkyError):
            raise error.__cause__ from None
        raise DataError(
            f"data.sources.{name}: its documents cannot be read: {error.__cause__}\n"
            "  -> check the files' permissions and the space left on the disk of data.prepared_root"
        ) from error
    assert isinstance(documents, Dataset)
    return Corpus(documents=documents, skipped=dict(skipped))


def source_files(name: str, source: SourceConfig) -> list[tuple[str, Path]]:
    """Return (document id, path) of every file of a text_files or python_stdlib source, sorted by document id.

    Raises:
        ConfigError: a text_files source without a path, or one that matches no file.
    """
    if source.kind is SourceKind.python_stdlib:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in root.rglob("*.py") if _is_stdlib_source(path.relative_to(root))]
    else:
        root, pattern = _split_glob(name, source)
        visible = (p for p in root.glob(pattern) if not any(x.startswith(".") for x in p.relative_to(root).parts))
        paths = [path for path in visible if path.is_file()]
        if not paths:
            raise ConfigError(
                f"data.sources.{name}.path", source.path, "it matches no file", "name a folder, a file or a glob"
            )
    return sorted((f"{source.kind}/{path.relative_to(root).as_posix()}", path) for path in paths)


def _documents(name: str, source: SourceConfig, skipped: Counter[str]) -> Iterator[Document]:
    if source.kind is SourceKind.kjv:
        yield from _kjv_chapters()
        return
    for document_id, path in source_files(name, source):
        try:
            yield Document(id=document_id, text=path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            skipped["undecodable"] += 1


def _distinct(documents: Iterator[Document], skipped: Counter[str]) -> Iterator[Document]:
    """Yield non-empty documents with new text: a copy of a held-out document must not be trained on."""
    seen: set[bytes] = set()
    for document in documents:
        if not document.text.strip():
            skipped["empty"] += 1
            continue
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest in seen:
            skipped["duplicate"] += 1
            continue
        seen.add(digest)
        yield document


def _kjv_chapters() -> Iterator[Document]:
    """Yield one document per chapter: its verses as lines, without the numbers."""
    chapter, verses = "", []
    for line in lzma.decompress(KJV_FILE.read_bytes()).decode("utf-8").splitlines():
        if line.startswith("  "):
            verses.append(line.lstrip(" 0123456789"))
        elif line:
            if verses:
                yield Document(id=f"kjv/{chapter}", text="\n".join(verses) + "\n")
            chapter, verses = line, []
    yield Document(id=f"kjv/{chapter}", text="\n".join(verses) + "\n")


def _is_stdlib_source(path: Path) -> bool:
    # _sysconfigdata_*.py holds the paths of the machine that built this Python: no text to learn, never the same twice.
    return _STDLIB_SKIPPED_FOLDERS.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata")


def _split_glob(name: str, source: SourceConfig) -> tuple[Path, str]:
    """Return the folder that document ids count from, and the pattern of the files under it."""
    if not source.path:
        raise ConfigError(
            f"data.sources.{name}.path", source.path, "text_files needs one", "name a folder, a file or a glob"
        )
    path = Path(source.path)
    if path.is_dir():
        return path, "**/*"
    fixed = list(takewhile(lambda part: not set(part) & set("*?["), path.parts))
    if len(fixed) == len(path.parts):
        return path.parent, path.name
    return Path(*fixed), str(Path(*path.parts[len(fixed) :]))

"""What a preparation came to, in lines for the person who started it."""

from collections.abc import Iterator
from pathlib import Path

from training.data.shards import PreparedData
from training.data.work_folder import unfinished

_HEADER = ["source", "form", "records", "held out", "tokens", "targets", "bytes", "bytes/token", "licence", "tags"]


def describe_prepared(prepared: PreparedData, *, seconds: float) -> Iterator[str]:
    """Yield a line for each source, for what could not be used and where it stands, and for the whole.

    Args:
        prepared: the data.
        seconds: that it took.
    """
    manifest = prepared.manifest
    rows = [_HEADER]
    for name, source in manifest.sources.items():
        shards = [*source.train.shards, *source.held_out.shards]
        num_tokens, num_bytes = (
            sum(counts) for counts in zip(*((s.num_tokens, s.num_bytes) for s in shards), strict=True)
        )
        rows.append(
            [
                name,
                source.form,
                f"{sum(shard.num_records for shard in shards):,}",
                f"{source.held_out.num_records:,}",
                f"{num_tokens:,}",
                f"{sum(shard.num_targets for shard in shards):,}",
                f"{num_bytes:,}",
                f"{num_bytes / num_tokens:.2f}",
                source.licence,
                " ".join(source.tags),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for name, source in manifest.sources.items():
        if source.quarantined:
            told = ", ".join(f"{count:,} {reason}" for reason, count in source.quarantined.items())
            yield f"{name}: not used: {told}; see {prepared.directory / name / 'quarantine.jsonl'}"
    for report in ("near_duplicates.jsonl", "contamination.jsonl"):
        if report in manifest.files:
            yield f"{prepared.directory / report}: what was found, and in which records"
    yield f"{prepared.directory}: {manifest.vocab_size:,} tokens in the vocabulary, {seconds:.1f} s"


def describe_unfinished(prepared: PreparedData) -> Iterator[str]:
    """Yield a line for each interrupted preparation of other data that lies beside this one."""
    for path in unfinished(prepared.directory.parent, prepared.directory):
        yield f"{path}: an unfinished preparation of {_told(path)}; remove it if nobody is to go on with it"


def _told(path: Path) -> str:
    sources = sorted(folder.name for folder in (path / "read").glob("*"))
    return f"sources {', '.join(sources)}" if sources else "other data"

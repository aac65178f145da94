"""Records of a source, each usable or with the reason why not; and which of them are held out of training.

A record's id names its kind and its place, or is what the record says itself; never the source's name in a config: the
same text is held out under whatever name it is read.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from training.config.data_schema import SourceConfig, SourceForm, SourceKind
from training.data.readers.embedded import kjv_chapters
from training.data.readers.json_lines import json_objects
from training.data.readers.rows import Fault, Reason, Row, oversized, sample_of
from training.data.readers.tables import table_rows
from training.data.readers.text import lines, whole_files
from training.data.records import Quarantined, Record

LICENCES = {
    SourceKind.kjv: "public domain (UK: Crown letters patent)",
    SourceKind.python_stdlib: "PSF-2.0",
}
"""Of embedded sources."""

_FIELDS = {
    SourceForm.conversations: ("messages", "tools"),
    SourceForm.preferences: ("prompt", "chosen", "rejected", "tools"),
}
_OPTIONAL_FIELDS = {"tools"}


@dataclass(kw_only=True, slots=True)
class Seen:
    """What of a source has been read, so that nothing is used twice."""

    id_of_digest: dict[bytes, str] = field(default_factory=dict)
    """Of every usable record."""
    ids: set[str] = field(default_factory=set)
    """Of records that bring their own."""

    def add(self, record_id: str, digest: bytes, *, is_own_id: bool) -> None:
        """Note a usable record."""
        self.id_of_digest[digest] = record_id
        if is_own_id:
            self.ids.add(record_id)


def is_held_out(record_id: str, fraction: float) -> bool:
    """Return whether a record is kept out of training: a pure function of its id, the same on every machine."""
    digest = hashlib.sha256(record_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def read_documents(name: str, source: SourceConfig) -> Iterator[Record]:
    """Yield the usable documents of a source in its own order, without copies of earlier ones.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    for _, found in read_records(name, source, seen=Seen()):
        if isinstance(found, Record):
            yield found


def read_records(
    name: str, source: SourceConfig, *, seen: Seen, first_row: int = 0
) -> Iterator[tuple[int, Record | Quarantined]]:
    """Yield (number of the next row, record) for every record of a source, up to `max_documents` usable ones.

    Args:
        name: the source's name in `data.sources`, for messages.
        source: what to read.
        seen: of the rows before `first_row`; is added to.
        first_row: where to begin.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    most = source.max_documents
    for number, row in enumerate(_rows(name, source, first_row), start=first_row + 1):
        if most is not None and len(seen.id_of_digest) >= most:
            return
        if row.content is None:
            continue
        record_id, found = _checked(row, source)
        if isinstance(found, Fault):
            yield number, Quarantined(id=record_id, fault=found)
            continue
        record = Record(id=record_id, content=found, digest=hashlib.sha256(found).digest())
        if fault := _already_there(record, seen):
            yield number, Quarantined(id=record_id, fault=fault)
            continue
        seen.add(record_id, record.digest, is_own_id=source.id_field is not None)
        yield number, record


def _rows(name: str, source: SourceConfig, first_row: int) -> Iterator[Row]:
    match source.kind:
        case SourceKind.kjv:
            return (row for number, row in enumerate(kjv_chapters()) if number >= first_row)
        case SourceKind.python_stdlib | SourceKind.text_files:
            return whole_files(name, source, first_row)
        case SourceKind.text_lines:
            return lines(name, source, first_row)
        case SourceKind.json:
            return json_objects(name, source, first_row)
        case _:
            fields = [*_FIELDS.get(source.form, (source.text_field,)), *([source.id_field] if source.id_field else [])]
            return table_rows(name, source, first_row, fields)


def _checked(row: Row, source: SourceConfig) -> tuple[str, bytes | Fault]:
    """Return a row's id, and its content or why it has none."""
    content = row.content
    if isinstance(content, Fault) or content is None:
        return row.place, content or Fault(reason=Reason.empty)
    record_id: str | Fault = row.place
    if isinstance(content, Mapping):
        if source.id_field is not None:
            record_id = _own_id(content, source.id_field)
        if isinstance(record_id, Fault):
            return row.place, record_id
        content = _text(content, source)
    if isinstance(content, Fault):
        return record_id, content
    try:
        encoded = content.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"a surrogate without its partner at character {error.start:,}"
        return record_id, Fault(reason=Reason.invalid_utf8, detail=detail, sample=sample_of(content))
    if len(encoded) > source.max_record_bytes:
        return record_id, oversized(len(encoded), source.max_record_bytes, content)
    if not content.strip():
        return record_id, Fault(reason=Reason.empty)
    return record_id, encoded


def _own_id(fields: Mapping[str, Any], name: str) -> str | Fault:
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        detail = f"field {name} is no id: {type(value).__name__}" if name in fields else f"no field {name}"
        return Fault(reason=Reason.bad_field, detail=detail)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return Fault(reason=Reason.invalid_utf8, detail=f"in field {name}", sample=sample_of(value))
    return value


def _text(fields: Mapping[str, Any], source: SourceConfig) -> str | Fault:
    """Return the text of a record with fields, or its JSON."""
    if source.form is not SourceForm.documents:
        names = _FIELDS[source.form]
        if missing := [name for name in names if fields.get(name) is None and name not in _OPTIONAL_FIELDS]:
            return Fault(reason=Reason.bad_field, detail=f"no field {missing[0]}", sample=sample_of(str(dict(fields))))
        kept = {name: fields[name] for name in names if fields.get(name) is not None}
        try:
            return json.dumps(kept, ensure_ascii=False)
        except TypeError as error:  # a table may hold what JSON cannot, as a time
            return Fault(reason=Reason.bad_field, detail=str(error), sample=sample_of(str(kept)))
    text = fields.get(source.text_field)
    if isinstance(text, str):
        return text
    name = source.text_field
    detail = f"field {name} is no text: {type(text).__name__}" if name in fields else f"no field {name}"
    return Fault(reason=Reason.bad_field, detail=detail, sample=sample_of(str(dict(fields))))


def _already_there(record: Record, seen: Seen) -> Fault | None:
    if record.id in seen.ids:
        return Fault(reason=Reason.repeated_id, detail="an earlier record has it", sample=sample_of(record.content))
    if (earlier := seen.id_of_digest.get(record.digest)) is not None:
        return Fault(reason=Reason.duplicate, detail=f"of {earlier}", sample=sample_of(record.content))
    return None

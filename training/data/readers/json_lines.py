"""JSON Lines, read line by line: `datasets` ends at the first line that is no JSON, here only that line is left out."""

from collections.abc import Iterator

from training.config.data_schema import SourceConfig
from training.data.readers.places import opened, source_files
from training.data.readers.rows import Fault, Reason, Row, sample_of, text_or_fault
from training.data.readers.text import bounded_lines
from training.plain_files import parse_json

_LARGEST_LINE_PER_RECORD = 8
r"""Bytes of a line for each byte that its text may have: \u0001 writes one byte in six, and there are other fields."""


def json_objects(name: str, source: SourceConfig, first_row: int) -> Iterator[Row]:
    """Yield the object of each line, from line `first_row` of all files on; blank lines count, and hold no record.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    row = 0
    for place, path in source_files(name, source):
        with opened(name, path) as file:
            for number, line in enumerate(bounded_lines(file, _LARGEST_LINE_PER_RECORD * source.max_record_bytes)):
                if row >= first_row:
                    yield Row(f"{place}#{number}", _object(line) if isinstance(line, bytes) else line)
                row += 1


def _object(line: bytes) -> dict[str, object] | Fault | None:
    if not line.strip():
        return None
    text = text_or_fault(line)
    if isinstance(text, Fault):
        return text
    try:
        value = parse_json(text)
    except ValueError as error:
        return Fault(reason=Reason.bad_json, detail=str(error), sample=sample_of(text))
    if not isinstance(value, dict):
        return Fault(reason=Reason.bad_json, detail="it is no object", sample=sample_of(text))
    return value

"""JSON Lines, read line by line: `datasets` ends at the first line that is no JSON, here only that line is left out."""

from collections.abc import Iterator

from training.config.data_schema import SourceConfig
from training.data.readers.rows import Fault, Reason, Row, sample_of, text_or_fault
from training.data.readers.text import placed_lines
from training.plain_files import parse_json

_LARGEST_LINE_PER_RECORD = 8
r"""Bytes of a line for each byte that its text may have: \u0001 writes one byte in six, and there are other fields."""


def json_objects(name: str, source: SourceConfig, first_row: int) -> Iterator[Row]:
    """Yield the object of each line, from line `first_row` of all files on; blank lines count, and hold no record.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    for place, line in placed_lines(name, source, first_row, _LARGEST_LINE_PER_RECORD * source.max_record_bytes):
        yield Row(place, _object(line) if isinstance(line, bytes) else line)


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

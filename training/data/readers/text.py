"""Texts without fields: files that are one document each, and files with one document a line."""

from collections.abc import Iterator
from typing import IO

from training.config.data_schema import SourceConfig
from training.data.readers.places import opened, source_files, unreadable
from training.data.readers.rows import Fault, Row, oversized, text_or_fault

_SHOWN_BYTES = 1024


def whole_files(name: str, source: SourceConfig, first_row: int) -> Iterator[Row]:
    """Yield one document per file, from the file with number `first_row` on.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    for place, path in source_files(name, source)[first_row:]:
        try:
            with path.open("rb") as file:
                content = file.read(source.max_record_bytes + 1)
        except OSError as error:
            raise unreadable(name, path, error) from error
        if len(content) > source.max_record_bytes:
            yield Row(place, oversized(len(content), source.max_record_bytes, content[:_SHOWN_BYTES]))
        else:
            yield Row(place, text_or_fault(content))


def lines(name: str, source: SourceConfig, first_row: int) -> Iterator[Row]:
    """Yield one document per line, without its line end, from line `first_row` of all files on.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    for place, line in placed_lines(name, source, first_row, source.max_record_bytes):
        yield Row(place, text_or_fault(line) if isinstance(line, bytes) else line)


def placed_lines(
    name: str, source: SourceConfig, first_row: int, largest_bytes: int
) -> Iterator[tuple[str, bytes | Fault]]:
    """Yield (file and number of the line, what `bounded_lines` gives), from line `first_row` of all files on.

    Raises:
        ConfigError: the source names no file.
        DataError: a file cannot be read.
    """
    row = 0
    for place, path in source_files(name, source):
        with opened(name, path) as file:
            for number, line in enumerate(bounded_lines(file, largest_bytes)):
                if row >= first_row:
                    yield f"{place}#{number}", line
                row += 1


def bounded_lines(file: IO[bytes], largest_bytes: int) -> Iterator[bytes | Fault]:
    """Yield the lines of a file without their ends; of a longer one than is allowed, only that it is."""
    while line := file.readline(largest_bytes + 2):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) <= largest_bytes and (line.endswith(b"\n") or len(line) <= largest_bytes):
            yield content
            continue
        num_bytes, beginning = len(line), line[:_SHOWN_BYTES]
        while not line.endswith(b"\n") and (line := file.readline(largest_bytes + 2)):
            num_bytes += len(line)
        yield oversized(num_bytes, largest_bytes, beginning)

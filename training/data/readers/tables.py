"""Tables with named columns, by Hugging Face `datasets`: parquet and Arrow files, and datasets of the hub.

Files are streamed: `datasets` would else write all of them once more, as Arrow. What the hub has is kept in its cache.
"""

import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, disable_progress_bars, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import OfflineModeIsEnabled

from training.config.data_schema import SourceConfig, SourceKind
from training.data.readers.places import source_files, unreadable
from training.data.readers.rows import Fault, Reason, Row, text_or_fault
from training.errors import ConfigError, DataError

_ROWS_AT_ONCE = 256


def table_rows(name: str, source: SourceConfig, first_row: int, fields: list[str]) -> Iterator[Row]:
    """Yield the fields of each row of a parquet, arrow or hub source, from row `first_row` of all its files on.

    Args:
        name: the source's name, for messages.
        source: what to read.
        first_row: rows to leave out at the beginning.
        fields: columns that are read; rows lack those that the table does not have.

    Raises:
        ConfigError: the source names no file, or no dataset of the hub.
        DataError: a file cannot be read, or the hub cannot be reached.
    """
    disable_progress_bars()
    if source.kind is SourceKind.hub:
        dataset = _of_hub(name, source)
        rows = dataset.select(range(min(first_row, len(dataset)), len(dataset)))
        yield from _rows(rows, f"hub/{source.path}", first_row, fields)
        return
    # A streamed file is not kept there, but `datasets` writes a lock, which has no business in the home folder.
    with tempfile.TemporaryDirectory() as cache:
        yield from _rows_of_files(name, source, first_row, fields, cache)


def _rows_of_files(name: str, source: SourceConfig, first_row: int, fields: list[str], cache: str) -> Iterator[Row]:
    seen = 0
    for place, path in source_files(name, source):
        number = 0
        try:
            for number, row in enumerate(_rows(_of_file(source.kind, path, cache), place, 0, fields), start=1):
                if seen + number > first_row:
                    yield row
        # pyarrow's errors are ValueErrors and OSErrors; `datasets` wraps them or not, as its version will.
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(name, path, error) from error
        seen += number


def _of_file(kind: SourceKind, path: Path, cache: str) -> IterableDataset:
    files = [glob.escape(str(path))]
    dataset = load_dataset(kind.value, data_files=files, split="train", streaming=True, cache_dir=cache)
    assert isinstance(dataset, IterableDataset)
    return dataset


def _of_hub(name: str, source: SourceConfig) -> Dataset:
    hub = source.hub
    assert source.path is not None
    try:
        dataset = load_dataset(source.path, name=hub.subset, split=hub.split, revision=hub.revision)
    except (OfflineModeIsEnabled, ConnectionError) as error:
        raise DataError(
            f"data.sources.{name}: the hub's dataset {source.path} cannot be reached from here: {error}\n"
            "  -> prepare the data where there is a network (and HF_HUB_OFFLINE is not set) and copy "
            f"data.prepared_root, or download its files and set data.sources.{name}.kind=parquet"
        ) from error
    except (DatasetNotFoundError, ValueError) as error:
        raise ConfigError(
            f"data.sources.{name}.path", source.path, str(error), "name a dataset of the hub, its subset and its split"
        ) from error
    assert isinstance(dataset, Dataset)
    return dataset


def _rows(dataset: Dataset | IterableDataset, place: str, number: int, fields: list[str]) -> Iterator[Row]:
    """Yield the rows of a dataset, numbered from `number` on."""
    batches: Any = dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    for table in batches:
        there = [field for field in fields if field in table.column_names]
        columns = [_values(table.column(field)) for field in there]
        for row in range(table.num_rows):
            content: dict[str, Any] | Fault = {}
            for field, values in zip(there, columns, strict=True):
                if isinstance(values[row], Fault):
                    content = values[row]
                    break
                content[field] = values[row]
            yield Row(f"{place}#{number}", content)
            number += 1


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return a column's values; where one has bytes that are no UTF-8, a fault in its place."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else text_or_fault(value) for value in raw]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(column.slice(row, 1)) for row in range(len(column))]


def _value(single: pa.ChunkedArray) -> Any:
    try:
        return single.to_pylist()[0]
    except UnicodeDecodeError as error:
        return Fault(reason=Reason.invalid_utf8, detail=str(error))

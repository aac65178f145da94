"""Tables with named columns: parquet files and datasets of the hub by Hugging Face `datasets`, Arrow files by pyarrow.

`datasets` is imported where it is used: that takes most of a second, which other kinds of sources need not spend.

Parquet is streamed: `datasets` would else write all of it once more, as Arrow. What the hub has is kept in its cache.
Arrow files are mapped: the reader of `datasets` refuses a whole file for one value that is no UTF-8.
"""

import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from training.config.data_schema import SourceConfig, SourceKind
from training.data.readers.places import source_files, unreadable
from training.data.readers.rows import Fault, Reason, Row, text_or_fault
from training.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

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
    if source.kind is SourceKind.hub:
        dataset = _of_hub(name, source)
        rows = dataset.select(range(min(first_row, len(dataset)), len(dataset)))
        yield from _rows(_tables(rows), f"hub/{source.path}", first_row, fields)
        return
    # A streamed file is not kept there, but `datasets` writes a lock, which has no business in the home folder.
    with tempfile.TemporaryDirectory() as cache:
        yield from _rows_of_files(name, source, first_row, fields, cache)


def _rows_of_files(name: str, source: SourceConfig, first_row: int, fields: list[str], cache: str) -> Iterator[Row]:
    tables, seen = _of_arrow if source.kind is SourceKind.arrow else _of_parquet, 0
    for place, path in source_files(name, source):
        number = 0
        try:
            for number, row in enumerate(_rows(tables(path, cache), place, 0, fields), start=1):
                if seen + number > first_row:
                    yield row
        # pyarrow's errors are ValueErrors and OSErrors; `datasets` wraps them or not, as its version will.
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(name, path, error) from error
        seen += number


def _of_parquet(path: Path, cache: str) -> Iterator[pa.Table]:
    from datasets import IterableDataset, disable_progress_bars, load_dataset

    disable_progress_bars()
    files = [glob.escape(str(path))]
    dataset = load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=cache)
    assert isinstance(dataset, IterableDataset)
    yield from _tables(dataset)


def _of_arrow(path: Path, _cache: str) -> Iterator[pa.Table]:
    """Yield the tables of an Arrow file of either format."""
    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = pa.ipc.open_stream(file)
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch.slice(first, _ROWS_AT_ONCE)])


def _tables(dataset: "Dataset | IterableDataset") -> Iterator[pa.Table]:
    batches: Any = dataset.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    yield from batches


def _of_hub(name: str, source: SourceConfig) -> "Dataset":
    from datasets import Dataset, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled

    disable_progress_bars()
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


def _rows(tables: Iterator[pa.Table], place: str, number: int, fields: list[str]) -> Iterator[Row]:
    """Yield the rows of tables, numbered from `number` on."""
    for table in tables:
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

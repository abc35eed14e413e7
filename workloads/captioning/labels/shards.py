"""Parquet and Arrow files as the Hugging Face Hub has them, read a part at a time: a row group, or a record batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = frozenset({".parquet", ".arrow"})


class Shard(ABC):
    """One file: its `schema`, and `starts`, the first row of each part and, last, the number of rows."""

    def __init__(self, path: Path, schema: pa.Schema, lengths: Sequence[int]) -> None:
        self.path, self.schema = path, schema
        self.starts = [0, *accumulate(lengths)]

    @abstractmethod
    def part(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one part."""

    def part_of(self, row: int) -> tuple[int, int]:
        """The part that a row is in, and its place there.

        Raises:
            SlipwayError: when there is no such row.
        """
        if not 0 <= row < self.starts[-1]:
            raise SlipwayError(f"{self.path} has {self.starts[-1]:,} rows, and no row {row}: run parse again")
        index = bisect_right(self.starts, row) - 1
        return index, row - self.starts[index]


class ParquetShard(Shard):
    """Only the footer stays in memory; each part is read from a file opened anew: processes and threads share nothing."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            super().__init__(path, file.schema_arrow, groups)

    def part(self, index: int, columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                return file.read_row_group(index, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise SlipwayError(f"{self.path}: row group {index} cannot be read ({error}): download it again") from None


class ArrowShard(Shard):
    """A stream (what `datasets` writes) or a file of record batches, memory-mapped."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        source = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_file(source)
            self.batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            self.batches = list(reader)
        super().__init__(path, reader.schema, [batch.num_rows for batch in self.batches])

    def part(self, index: int, columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        try:
            part = pa.Table.from_batches([self.batches[index].select(list(columns))])
            # A mapped file is believed otherwise: a wrong offset would read memory that is not its own.
            part.validate(full=True)
        except pa.ArrowException as error:
            raise SlipwayError(f"{self.path}: batch {index} cannot be read ({error}): download it again") from None
        return part


def opened(path: Path) -> Shard:
    """The shard at `path`; the last few that were opened stay so.

    Raises:
        SlipwayError: when it is missing, or neither parquet nor Arrow.
    """
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise SlipwayError(f"{path} is missing: run download and parse again") from None


@lru_cache(maxsize=16)
def _opened(path: Path, changed: int) -> Shard:
    import pyarrow as pa

    try:
        return ParquetShard(path) if path.suffix.lower() == ".parquet" else ArrowShard(path)
    except (pa.ArrowException, OSError) as error:
        raise SlipwayError(f"{path} cannot be read ({error}): was it cut off? Download it again") from None


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures: bytes, or bytes and a path."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def bytes_in(cell: Any) -> bytes | None:
    """The picture's bytes in a cell of a column that holds pictures; None where it has none."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else None


def cells_at(path: Path, row: int) -> list[bytes | None]:
    """The pictures of one row, one a column that holds any. The part it is in stays decoded for the rows that follow.

    Raises:
        SlipwayError: when the file is missing or damaged, or has no such row.
    """
    shard = opened(path)
    index, place = shard.part_of(row)
    part = _pictures(shard, index)
    return [bytes_in(part.column(name)[place].as_py()) for name in part.column_names]


@lru_cache(maxsize=1)
def _pictures(shard: Shard, index: int) -> pa.Table:
    return shard.part(index, picture_columns(shard.schema))

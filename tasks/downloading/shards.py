"""Some rows and columns of the parquet or Arrow shards of a far data set: only the bytes that hold them are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.progress import Progress
from tasks.downloading.archives import unwanted
from tasks.downloading.remotes import BLOCK

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".arrow")
SHOWN = 5
AHEAD = 8 * BLOCK  # bytes of an Arrow stream that are asked for at once


def take(
    files: Any, root: str, names: Iterable[str], folder: Path, *, rows: int | None, columns: Sequence[str] | None
) -> dict[str, int]:
    """Write the first `rows` rows of each series of shards below `root` to `folder`, as parquet under the shards' own names, and
    give how many rows of which shard came. A row keeps its number.

    A series are the files whose names differ in their numbers alone: those of train are one, those of test another. A shard
    that an earlier attempt brought is not asked for again.

    Raises:
        SlipwayError: where a shard lacks a column, or cannot be read.
    """
    taken: dict[str, int] = {}
    for _, series in groupby(sorted(names, key=lambda name: (_series(name), name)), _series):
        left = rows
        for name in series:
            if left == 0:
                break
            path = folder / Path(name).with_suffix(".parquet")
            if not path.exists():
                with _opened(files, f"{root}/{name}", name) as file:
                    _write(file, path, name, most=left, columns=columns)
            taken[name] = _num_rows(path)
            left = None if left is None else left - taken[name]
    return taken


def shards_in(names: Iterable[str], part: str) -> list[str]:
    """The shards among the files of a repository that an address names: a file, a folder, a pattern, or ("") all.

    Raises:
        SlipwayError: when there is none, or one would be written outside the download.
    """
    every = list(names)
    meant = [name for name in every if part in ("", name) or name.startswith(f"{part}/") or fnmatch(name, part)]
    for name in meant:
        if ".." in name.replace("\\", "/").split("/"):
            raise SlipwayError(f"it holds {name!r}, which would be written outside the download")
    found = [name for name in meant if name.lower().endswith(SUFFIXES) and not unwanted(name)]
    if not found:
        raise SlipwayError(
            f"no parquet or Arrow files there to take rows from, but {', '.join(sorted(meant or every)[:SHOWN]) or 'nothing'}; the"
            " hub keeps parquet of most data sets under revision: refs/convert/parquet"
        )
    return found


def _series(name: str) -> str:
    return re.sub(r"\d+", "#", name)


@contextmanager
def _opened(files: Any, path: str, name: str) -> Iterator[Any]:
    """A far file; of parquet the very ranges that are read are asked for, an Arrow stream is read ahead."""
    parquet = name.lower().endswith(".parquet")
    with files.open(path, "rb", **({"cache_type": "none"} if parquet else {"block_size": AHEAD})) as file:
        yield file


def _write(file: Any, path: Path, name: str, *, most: int | None, columns: Sequence[str] | None) -> None:
    """The first rows of an open shard, a row group for each of its parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema, tables = _parts(file, name, columns)
        with (
            replace_when_complete(path) as temporary,
            pq.ParquetWriter(temporary, schema) as writer,
            Progress(f"rows of {name}", most or 0, unit=" rows") as progress,
        ):
            for table in _first(tables, most):
                writer.write_table(table.cast(schema))
                progress.advance(len(table))
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, pa.ArrowException) and type(error) is not OSError:
            raise  # the hub's own errors are kinds of OSError; pyarrow's is that itself
        raise SlipwayError(f"{name} cannot be read ({error}): is it damaged at its address?") from None


def _parts(file: Any, name: str, columns: Sequence[str] | None) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The schema of the columns wanted, without the notes in it that tell of others, and the row groups or record batches with
    these columns, each read when it is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name.lower().endswith(".parquet"):
        shard = pq.ParquetFile(file)
        schema, wanted = shard.schema_arrow, _wanted(shard.schema_arrow, columns, name)
        groups = range(shard.num_row_groups)
        tables = (shard.read_row_group(index, columns=wanted, use_threads=False).select(wanted) for index in groups)
    else:
        reader = pa.ipc.open_stream(file)
        schema, wanted = reader.schema, _wanted(reader.schema, columns, name)
        tables = (pa.Table.from_batches([batch]).select(wanted) for batch in reader)
    return pa.schema([schema.field(column) for column in wanted]), tables


def _first(tables: Iterable[pa.Table], most: int | None) -> Iterator[pa.Table]:
    """As far as the row that makes them `most`."""
    for table in tables:
        part = table.slice(0, most)
        yield part
        if most is not None and not (most := most - len(part)):
            return


def _wanted(schema: pa.Schema, columns: Sequence[str] | None, name: str) -> list[str]:
    for column in columns or ():
        if column not in schema.names:
            raise SlipwayError(f"columns names {column!r}, which {name} has not; it has {', '.join(schema.names)}")
    return list(columns or schema.names)


def _num_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows

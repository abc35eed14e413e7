"""Labelled examples as they travel between the stages: one Arrow file, memory-mapped, never a list in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SPLITS = ("train", "val", "test")
ROWS_PER_BATCH = 1024


@dataclass(frozen=True)
class Record:
    """One labelled example.

    `key` names it for good (the relative path of its file, say); examples that must not be separated share a `group`
    (a patient, a circuit). `inputs` and `targets` hold plain values that fit the workload's Arrow schema; paths in
    `inputs` are relative to the folder of `download`. `split` is the official one, or None to let the hash decide.
    `likeness`, 16 bytes or none, is a fingerprint that differs in few bits between examples that look alike; it is used
    while parsing and not stored.
    """

    key: str
    group: str
    inputs: dict[str, Any]
    targets: dict[str, Any]
    split: str | None = None
    likeness: bytes = b""


@dataclass(frozen=True)
class Rejected:
    """A row that was not usable, as it goes to quarantine.csv: where it stands, what it said, why it was refused.

    `whole` tells whether the example itself was lost (an unreadable image) or only one of its labels (a degenerate polygon).
    `absent` says that its labels are of something that was not downloaded: it is quarantined and counted apart, and no loss.
    """

    file: str
    row: int | str
    value: str
    reason: str
    whole: bool = False
    absent: bool = False


def split_of(name: str, shares: Sequence[float]) -> str:
    """The split that a group belongs to, from a hash of its name alone: new data never moves an old example.

    `shares` are the parts of train, val and test; they sum to 1.
    """
    point = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return "train" if point < shares[0] else "val" if point < shares[0] + shares[1] else "test"


def write_records(
    folder: Path, records: Iterable[Record], *, inputs: pa.DataType, targets: pa.DataType, shares: Sequence[float]
) -> dict[str, int]:
    """Stream `records` to `folder`/records.arrow, and give the number of records in each split. Memory: one batch of rows."""
    import pyarrow as pa

    schema = pa.schema(
        [("key", pa.string()), ("group", pa.string()), ("split", pa.string()), ("inputs", inputs), ("targets", targets)]
    )
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    seen: set[bytes] = set()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        replace_when_complete(folder / "records.arrow") as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        rows: list[dict[str, Any]] = []
        for record in records:
            digest = hashlib.blake2b(record.key.encode(), digest_size=12).digest()
            if digest in seen:
                raise SlipwayError(f"two records have the key {record.key!r}: keys must be unique")
            seen.add(digest)
            split = record.split or split_of(record.group or record.key, shares)
            if split not in counts:
                raise SlipwayError(f"record {record.key!r} names the split {split!r}; splits are {', '.join(SPLITS)}")
            counts[split] += 1
            rows.append(
                {
                    "key": record.key,
                    "group": record.group,
                    "split": split,
                    "inputs": record.inputs,
                    "targets": record.targets,
                }
            )
            if len(rows) == ROWS_PER_BATCH:
                writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
    return counts


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """Records of a `parse` folder, or a part of them. Opening reads no rows; a row is decoded when it is asked for."""

    path: Path
    root: Path
    indices: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: Path, *, root: Path) -> Records:
        """The records that `parse` wrote in `folder`; `root` is the folder that the paths in them start from.

        Raises:
            SlipwayError: when the folder holds no records.
        """
        path = Path(folder) / "records.arrow"
        if not path.is_file():
            raise SlipwayError(
                f"{path} is missing: run the parse stage first (dvc repro, or python -m tasks.parse WORKLOAD)"
            )
        return cls(path, Path(root))

    def __reduce__(self) -> tuple[type[Records], tuple[Path, Path, np.ndarray | None]]:
        """Other processes get where the records lie, and not the table that was opened here."""
        return Records, (self.path, self.root, self.indices)

    @cached_property
    def table(self) -> pa.Table:
        """The whole memory-mapped table, whatever part of it this is."""
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()

    @cached_property
    def positions(self) -> np.ndarray:
        """Row numbers in the table, int64, one for each record of this part."""
        import numpy as np

        return np.arange(self.table.num_rows) if self.indices is None else self.indices

    def split(self, name: str) -> Records:
        """The records of one split, in the order they were written."""
        import numpy as np

        splits = np.array(self.table["split"].to_pylist())[self.positions]  # to_numpy would import pandas
        return self.take(np.flatnonzero(splits == name))

    def take(self, indices: Sequence[int] | np.ndarray) -> Records:
        """The records at these positions of this part."""
        import numpy as np

        return Records(self.path, self.root, self.positions[np.asarray(indices, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        row = {name: self.table[name][int(self.positions[index])].as_py() for name in self.table.column_names}
        return Record(**row)

    def key(self, index: int) -> str:
        """The key of one record, without reading the rest of it."""
        return self.table["key"][int(self.positions[index])].as_py()

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole file's bytes and of the rows chosen, hex."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b")
        digest.update(self.positions.tobytes())
        return digest.hexdigest()[:32]


def read_facts(folder: Path) -> dict[str, Any]:
    """What `parse` found out about the data (class names, counts): facts.json of its folder."""
    return json.loads((Path(folder) / "facts.json").read_text())

"""Records as they lie in memory and travel."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa

from contracts.records import Record, Records, write_records


def test_records_travel_to_other_processes_without_the_table_that_was_opened(tmp_path: Path) -> None:
    written = [Record(f"{number}.png", "", {"text": "x" * 1000}, {"kind": number}, "train") for number in range(500)]
    kinds = {"inputs": pa.struct([("text", pa.string())]), "targets": pa.struct([("kind", pa.int32())])}
    write_records(tmp_path, written, **kinds, shares=(1, 0, 0))
    records = Records.open(tmp_path, root=tmp_path).split("train").take(range(0, 500, 50))
    assert records[3] == written[150]
    travelled = pickle.dumps(records)
    assert len(travelled) < 2000
    assert list(pickle.loads(travelled)) == list(records)

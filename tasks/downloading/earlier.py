"""What an earlier download left that is still what its address holds: it is taken over and not fetched again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts.files import read_json, write_json
from contracts.settings import Source
from tasks.downloading.addresses import scheme_of, shown
from tasks.downloading.fetching import present_revision, tree_digest


@dataclass(frozen=True)
class Arrival:
    """One source as it once came: how the address was shown, what the far end called its state, and the files it became.

    `names` are relative to raw/; `tree` is their digest, None for what was copied from this machine, which is copied anew.
    `rows` and `columns` are what was asked for of a data set, `shards` the files that they came from and how many rows of each.
    """

    address: str
    into: str
    revision: str | None
    sha256: str
    bytes: int
    files: int
    left_out: int
    names: Sequence[str]
    tree: str | None
    rows: int | None = None
    columns: Sequence[str] | None = None
    shards: Mapping[str, int] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What download.json says of it."""
        told = {
            key: value for key, value in asdict(self).items() if key not in ("names", "tree", "rows", "columns", "shards")
        }
        return told if self.shards is None else {**told, "rows": self.rows, "columns": self.columns, "shards": self.shards}


@dataclass(frozen=True)
class Earlier:
    """The arrivals of the last download that succeeded; their files should lie below `raw`."""

    raw: Path
    arrivals: Sequence[Arrival] = ()

    @classmethod
    def read(cls, ledger: Path, raw: Path) -> Earlier:
        return cls(raw, [Arrival(**one) for one in read_json(ledger)] if ledger.exists() else ())

    @staticmethod
    def write(ledger: Path, arrivals: Sequence[Arrival]) -> None:
        write_json(ledger, [asdict(one) for one in arrivals])

    def of(self, source: Source) -> Arrival | None:
        """The earlier arrival of the same part of the same address at the same place."""
        wanted = shown(source.address), source.into, source.rows, list(source.columns or ())
        same = (one for one in self.arrivals if (one.address, one.into, one.rows, list(one.columns or ())) == wanted)
        return next(same, None)

    def still_good(self, source: Source) -> Arrival | None:
        """The earlier arrival if its files lie there untouched and the address holds the same, or the sha256 in params.yaml says
        that the same is wanted."""
        one = self.of(source)
        if one is None or one.tree is None or scheme_of(source.address) == "file":
            return None
        if source.sha256 is not None and source.sha256 != one.sha256:
            return None
        if not all((self.raw / name).is_file() for name in one.names):
            return None
        if source.sha256 is None and (
            one.revision is None or present_revision(source, one.revision, one.bytes) != one.revision
        ):
            return None
        return one if tree_digest(self.raw, one.names)[0] == one.tree else None

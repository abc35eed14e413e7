"""The stage parse: raw label files to one Arrow file of records, and to quarantine.csv what could not be used.

Nothing of an earlier run is touched unless this one succeeds. Where it stops, quarantine.csv and summary.json lie in
data/parse/WORKLOAD.refused, and where the data are refused as a whole the workload's quality report.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from contracts.errors import DataRefused, SlipwayError
from contracts.files import remove, replace_when_complete, write_json
from contracts.records import SPLITS, Record, Records, Rejected, split_of, write_records
from contracts.settings import Settings
from contracts.workload import Facts, HasQuality, Workload, load, settings_of
from tasks.near_duplicates import Alike, Likenesses, write_alike
from tasks.stage import folder, stage_main

MAX_VALUE = 200
MAX_PROCESSES = 32
SHOWN_ALIKE = 20
# The folder, below that of what was refused, with the workload's quality report.
QUALITY = "quality"


def run(workload: str) -> None:
    """Parse what `download` brought for a workload.

    Raises:
        SlipwayError: when nothing was downloaded, no record comes out, a split that training needs is empty, or more than
            `parse.max_rejected` of the examples or of their labels cannot be used.
    """
    raw = folder("download", workload) / "raw"
    if not raw.is_dir():
        raise SlipwayError(f"{raw} is missing: run the download stage first (python -m tasks.download {workload})")
    parse(load(workload), settings_of(workload), raw, folder("parse", workload), processes=usable_processes())


def usable_processes() -> int:
    """The cores this process may use; SLIPWAY_PROCESSES overrides."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = os.environ.get("SLIPWAY_PROCESSES", "")
    if chosen and not (chosen.isdigit() and int(chosen)):
        raise SlipwayError(f"SLIPWAY_PROCESSES is {chosen!r}: it must be a number of processes, 1 or more")
    return int(chosen) if chosen else min(cores, MAX_PROCESSES)


def parse(workload: Workload, settings: Settings, raw: Path, output: Path, *, processes: int) -> dict[str, Any]:
    """Write records.arrow, facts.json, quarantine.csv, near_duplicates.csv and summary.json to `output`; gives the last."""
    refused = refused_of(output)
    with replace_when_complete(output) as partial:
        partial.mkdir(parents=True)
        with Tally(partial / "quarantine.csv", settings.parse.shares) as tally:
            try:
                summary = _write(workload, settings, raw, partial, tally, processes)
            except SlipwayError as error:
                tally.close()
                remove(refused)
                told = []
                if isinstance(error, DataRefused) and isinstance(workload, HasQuality):
                    write_quality(workload, settings, Records.open(partial, root=raw), {}, refused / QUALITY)
                    told.append(f"What the data are like is in {refused / QUALITY / 'quality.md'}")
                if tally.num_rejected:
                    _keep(tally, refused)
                    told.append(f"Every refused row is in {refused / 'quarantine.csv'}")
                if not told:
                    raise
                raise SlipwayError(". ".join([str(error), *told])) from None
    remove(refused)
    _tell(summary, output)
    return summary


def refused_of(output: Path) -> Path:
    """Where the explanation lies of why this stage did not write `output`."""
    return output.with_name(output.name + ".refused")


def _write(workload: Workload, settings: Settings, raw: Path, partial: Path, tally: Tally, processes: int) -> dict[str, Any]:
    inputs, targets = workload.schema()
    examples = tally.accepted(workload.parse(raw, settings, processes=processes))
    counts = write_records(partial, examples, inputs=inputs, targets=targets, shares=settings.parse.shares)
    _check(tally, settings, raw)
    facts = workload.facts(raw, Records.open(partial, root=raw), settings)
    write_json(partial / "facts.json", facts)
    alike = tally.likenesses.across_splits()
    write_alike(partial / "near_duplicates.csv", alike)
    summary = {
        "records": sum(counts.values()),
        "splits": counts,
        "labels": tally.num_labels,
        "objects": dict(facts.get("objects", {})),
        "rejected": tally.summary(),
        "near_duplicates": _summary_of(alike, len(tally.likenesses)),
        **({"findings": facts["findings"]} if "findings" in facts else {}),
    }
    write_json(partial / "summary.json", summary)
    return summary


@dataclass
class Tally:
    """What went by: refused rows go to `path` as they come, records are counted and their likeness is kept."""

    path: Path
    shares: tuple[float, float, float]
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    num_labels: int = 0
    lost_examples: int = 0
    lost_labels: int = 0
    absent: int = 0
    likenesses: Likenesses = field(default_factory=Likenesses)

    def __enter__(self) -> Self:
        self._file = self.path.open("w", newline="", encoding="utf-8")
        self._table = csv.writer(self._file)
        self._table.writerow(["file", "row", "value", "reason"])
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def accepted(self, examples: Iterable[Record | Rejected]) -> Iterator[Record]:
        """The records among `examples`; what was refused is written down on the way."""
        for example in examples:
            if isinstance(example, Rejected):
                self._refuse(example)
                continue
            split = example.split or split_of(example.group or example.key, self.shares)
            self.counts[split] += 1
            self.num_labels += labels_in(example)
            if split in SPLITS:
                self.likenesses.add(example.key, split, example.likeness)
            yield example
        self._file.flush()

    def _refuse(self, row: Rejected) -> None:
        self._table.writerow([row.file, row.row, shortened(row.value), shortened(row.reason)])
        self.reasons[row.reason.partition(":")[0]] += 1
        self.absent += row.absent
        self.lost_examples += row.whole and not row.absent
        self.lost_labels += not (row.whole or row.absent)

    @property
    def num_rejected(self) -> int:
        return self.lost_examples + self.lost_labels + self.absent

    @property
    def share_of_examples(self) -> float:
        return self.lost_examples / max(self.lost_examples + self.counts.total(), 1)

    @property
    def share_of_labels(self) -> float:
        return self.lost_labels / max(self.lost_labels + self.num_labels, 1)

    def summary(self) -> dict[str, Any]:
        return {
            "examples": self.lost_examples,
            "labels": self.lost_labels,
            "absent": self.absent,
            "share_of_examples": self.share_of_examples,
            "share_of_labels": self.share_of_labels,
            "reasons": dict(self.reasons.most_common()),
        }


def labels_in(record: Record) -> int:
    """How many labels a record carries: the items of the lists in its targets, or one where there are none."""
    lists = [value for value in record.targets.values() if isinstance(value, list)]
    return sum(map(len, lists)) if lists else 1


def shortened(text: str) -> str:
    """`text` on one line, at most MAX_VALUE characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_VALUE else line[: MAX_VALUE - 1] + "…"


def _check(tally: Tally, settings: Settings, raw: Path) -> None:
    """Raises SlipwayError where the records are too few to go on with."""
    limit = settings.parse.max_rejected
    most = ", ".join(f"{count:,} {reason}" for reason, count in tally.reasons.most_common(4))
    if not tally.counts.total():
        raise SlipwayError(f"no example in {raw} can be used: {most or 'its label files are empty'}")
    for what, share, lost in (
        ("examples", tally.share_of_examples, tally.lost_examples),
        ("labels", tally.share_of_labels, tally.lost_labels),
    ):
        if share > limit:
            raise SlipwayError(
                f"{lost:,} {what} ({share:.1%}) cannot be used, more than parse.max_rejected = {limit:g} allows: {most}."
                " Correct them, or raise parse.max_rejected in params.yaml if the rest is enough"
            )
    for split in ("train", "val"):
        if not tally.counts[split]:
            raise SlipwayError(_empty_split(split, tally))


def _empty_split(split: str, tally: Tally) -> str:
    counts = ", ".join(f"{tally.counts[name]:,} {name}" for name in SPLITS)
    return (
        f"the split {split!r} is empty ({counts}), and training needs it. Splits come from the data set's own train, val and"
        f" test folders or lists; without them parse.shares = {list(tally.shares)} divides by a hash of each example's name"
        f" or group: give {split} a larger share, bring more data (or groups), or name an official {split} split"
    )


def write_quality(workload: HasQuality, settings: Settings, records: Records, facts: Facts, folder: Path) -> None:
    """Write the workload's quality report; of data that are refused as a whole there are no facts."""
    with replace_when_complete(folder) as partial:
        partial.mkdir()
        workload.quality(records, settings, facts, partial)


def _keep(tally: Tally, refused: Path) -> None:
    """Put what explains a stop by single rows where it stays."""
    refused.mkdir(parents=True, exist_ok=True)
    tally.path.rename(refused / "quarantine.csv")
    splits = {split: tally.counts[split] for split in SPLITS}
    write_json(refused / "summary.json", {"splits": splits, "labels": tally.num_labels, "rejected": tally.summary()})


def _summary_of(alike: list[Alike], compared: int) -> dict[str, Any]:
    pairs = Counter(f"{one.split} in {one.other_split}" for one in alike)
    shown = [{"key": one.key, "alike": one.other, "bits_of_128": one.distance} for one in alike[:SHOWN_ALIKE]]
    return {"compared": compared, "found": len(alike), "by_splits": dict(pairs), "examples": shown}


def _tell(summary: dict[str, Any], output: Path) -> None:
    """Say in a few lines what came out, and warn of what will hurt later."""
    splits, rejected, alike = summary["splits"], summary["rejected"], summary["near_duplicates"]
    counts = ", ".join(f"{splits[name]:,} {name}" for name in SPLITS)
    print(f"{summary['records']:,} records ({counts}), {summary['labels']:,} labels")
    if rejected["absent"]:
        print(f"{rejected['absent']:,} labels of images that are not there: set aside, and not counted as lost")
    if any(rejected[kind] for kind in ("examples", "labels", "absent")):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected["reasons"].items())
        lost = f"{rejected['examples']:,} examples and {rejected['labels']:,} labels"
        print(f"quarantined {lost} ({reasons}): {output / 'quarantine.csv'}")
    if not splits["test"]:
        print("warning: the split 'test' is empty: evaluation has nothing that training did not choose by", file=sys.stderr)
    if alike["found"]:
        pairs = ", ".join(f"{count:,} {pair}" for pair, count in alike["by_splits"].items())
        print(
            f"warning: {alike['found']:,} near-duplicates across splits ({pairs}), scores will flatter:"
            f" {output / 'near_duplicates.csv'}; parse.group_pattern keeps alike images together",
            file=sys.stderr,
        )


if __name__ == "__main__":
    stage_main(run)

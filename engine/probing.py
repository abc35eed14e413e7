"""Finds the largest micro-batch that fits, by training and scoring real batches on the real ranks: nothing of it is kept.

This is the launcher's side; `engine/fitting.py` is what runs in the ranks. Each try decides half of the candidates. All ranks
agree on each outcome; where a rank dies of it (killed by the system, or with weights in pieces, when no rank can go on without
the others), the candidate does not fit and the rest is tried in a new start.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.run import RunSpec
from contracts.settings import validate
from contracts.workload import load
from engine.launch import LOG, errors_in, own_errors, ranks, wait
from engine.planning import micro_batches

STATE = "probe.json"
KILLED = "a rank was killed, perhaps for want of memory"


@dataclass(frozen=True)
class Probed:
    """What was tried: micro-batches that fit, and that do not, in samples, in the order tried.

    `peak` is the most memory of any rank in bytes with the largest that fits; 0 where it cannot be known (a CPU without limit).
    `trying` is the candidate at work, while it is.
    """

    candidates: tuple[int, ...]
    fits: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()
    peak: int = 0
    trying: int | None = None

    @property
    def micro_batch(self) -> int | None:
        """The largest that fits on all ranks; None where not even the smallest does."""
        return max(self.fits, default=None)

    @property
    def next(self) -> int | None:
        """The candidate in the middle of those undecided; None where all are."""
        low, high = max(self.fits, default=0), min(self.fails, default=sys.maxsize)
        left = [one for one in self.candidates if low < one < high]
        return left[len(left) // 2] if left else None

    def decided(self, micro_batch: int, *, fits: bool, peak: int = 0) -> Probed:
        """With the outcome of one try."""
        if fits:
            return replace(self, fits=(*self.fits, micro_batch), peak=peak, trying=None)
        return replace(self, fails=(*self.fails, micro_batch), trying=None)

    def write(self, folder: Path) -> None:
        write_json(folder / STATE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Probed:
        value = read_json(folder / STATE)
        return cls(**{**value, **{name: tuple(value[name]) for name in ("candidates", "fits", "fails")}})


def probe(spec: RunSpec, candidates: Sequence[int] = ()) -> Probed:
    """Try micro-batches of a run on its own ranks; `spec.output` is not touched.

    `candidates` are in samples; by default all that divide what a rank has of a global batch.

    Raises:
        Hung: when a rank stood still for longer than the plan allows.
        SlipwayError: with the words of the rank that failed for another reason than memory.
    """
    train = validate(load(spec.workload).Settings, spec.settings, where=spec.workload).train
    every = micro_batches(train, ranks=spec.plan.ranks * spec.plan.replicas)
    return searched(tuple(sorted(candidates)) or every, lambda folder: _run(replace(spec, output=str(folder))))


def searched(candidates: tuple[int, ...], start: Callable[[Path], int]) -> Probed:
    """The outcome of as many starts as it takes: `start` runs the ranks in a folder and gives their exit status."""
    with tempfile.TemporaryDirectory(prefix="slipway-probe-") as name:
        folder = Path(name)
        Probed(candidates).write(folder)
        while (found := Probed.read(folder)).next is not None:
            if start(folder) == 0:
                continue
            found, words = Probed.read(folder), _failure(folder)
            if found.trying is None:
                raise SlipwayError(f"probing for memory failed before the first try: {words or KILLED}")
            found.decided(found.trying, fits=False).write(folder)
        return found


def _run(spec: RunSpec) -> int:
    """One start of the ranks; gives their exit status."""
    with ranks(spec, "engine.fitting") as (process, watch):
        return wait(process, watch)


def _failure(folder: Path) -> str:
    """What a rank said of its end, where it was for memory, or nothing where none said anything; forgotten afterwards.

    Raises:
        SlipwayError: when it was for something else.
    """
    errors = errors_in(folder)
    for path in folder.glob("error-*.json"):
        path.unlink()
    scarce = [error for error in errors if error["kind"] == "OutOfMemory"]
    own = [error for error in own_errors(errors) if error["kind"] != "OutOfMemory"]
    if own and not scarce:
        first = own[0]
        print((folder / LOG).read_text(encoding="utf-8", errors="replace"), file=sys.stderr, flush=True)
        kind = "" if first["kind"] == "SlipwayError" else f"{first['kind']}: "
        raise SlipwayError(f"probing for memory failed on rank {first['rank']}: {kind}{first['message']}")
    return scarce[0]["message"] if scarce else ""

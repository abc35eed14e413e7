"""Follows the ranks of a machine from outside, and looks closely once they are stuck.

What the ranks say comes from `engine/beacon.py`; whether they are alive, busy or stopped from the operating system; where
they are from their own stacks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.beacon import FINISHED, SCORING, STARTING, WAITING_FOR_DATA, WRITING, Mark, place_of, read
from engine.hang.report import ABSENT, BLOCKED, DEAD, RUNNING, STOPPED, Report, section
from engine.hang.verdict import guilty

START_SECONDS = 1800.0  # imports, downloads, compilers: everything before the first mark
PATIENT_SECONDS = 1800.0  # the scores of a whole split; a checkpoint of which nothing more arrives on the disk
LONGEST_LOOK = 2.0  # seconds; what a longer pause between two looks adds to the time that a rank stood still
CPU_SECONDS, STACK_SECONDS = 0.5, 2.0  # how long it is measured whether a process works; how long a stack is waited for
STATES = {
    psutil.STATUS_STOPPED: STOPPED,
    psutil.STATUS_TRACING_STOP: STOPPED,
    psutil.STATUS_DISK_SLEEP: BLOCKED,
    psutil.STATUS_ZOMBIE: DEAD,
    psutil.STATUS_DEAD: DEAD,
}


@dataclass(frozen=True)
class Diagnosis:
    """A stuck run: who is to blame (nobody where it is the connection), why, and what every rank was doing."""

    guilty: tuple[int, ...]
    why: str
    reports: tuple[Report, ...]

    def text(self) -> str:
        """The page to print: a line that says it all, then a section for every rank."""
        return "\n\n".join([f"hang: {self.why}", *(section(report, self.guilty) for report in self.reports)]) + "\n"


class Watch:
    """Follows the ranks of one machine through their beacons; lives as long as their launcher."""

    def __init__(
        self,
        folder: Path,
        ranks: Iterable[int],
        bound_seconds: float,
        *,
        start_seconds: float = START_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` is on this machine's own disk, and given to every rank; what an earlier run left in it is removed."""
        self.folder, self.bound_seconds, self.start_seconds, self._clock = folder, bound_seconds, start_seconds, clock
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("rank-*"):
            stale.unlink()
        self._ranks = {rank: _Followed(folder, rank) for rank in ranks}
        self._loaders: dict[tuple[int, int], _Followed] = {}
        self._now, self._looked = 0.0, clock()

    def look(self) -> Diagnosis | None:
        """The diagnosis once the run is stuck, None while it goes on. Returns at once, or in up to 3 s when it is stuck."""
        self._notice()
        if not self._stuck():
            return None
        processes = [*self._ranks.values(), *self._loaders.values()]
        # In this order: a signal disturbs what it asks about, for it ends a sleep or a system call.
        work = _work(processes)
        self._notice()
        if not self._stuck():
            return None
        stacks = _stacks(processes)
        reports = tuple(self._report(one, work, stacks) for one in self._ranks.values())
        verdict = guilty(reports)
        return Diagnosis(verdict.ranks, verdict.why, reports)

    @property
    def lost(self) -> bool:
        """Whether a rank had died at the last look without having finished."""
        return any(rank.state == DEAD and not rank.left for rank in self._ranks.values())

    def _notice(self) -> None:
        """Read all beacons. Time in which nobody looked does not count: the whole run may have been suspended."""
        looked = self._clock()
        self._now += min(looked - self._looked, LONGEST_LOOK)
        self._looked = looked
        for path in self.folder.glob("rank-*-loader-*.beacon"):
            _, rank, _, loader = path.stem.split("-")
            self._loaders.setdefault((int(rank), int(loader)), _Followed(self.folder, int(rank), int(loader)))
        for process in (*self._ranks.values(), *self._loaders.values()):
            process.notice(self._now)

    def _stuck(self) -> bool:
        """A rank that nothing keeps waiting is late, or all are: who waits in a collective may wait while others move."""
        here = [rank for rank in self._ranks.values() if not rank.left]
        late = [rank for rank in here if self._late(rank)]
        return bool(late) and (len(late) == len(here) or any(not rank.in_collective for rank in late))

    def _late(self, rank: _Followed) -> bool:
        return self._still_seconds(rank) > self._bound(rank.mark.phase if rank.mark else STARTING)

    def _bound(self, phase: str) -> float:
        """How many seconds a rank may stand still in a phase."""
        if phase == STARTING:
            return self.start_seconds
        return max(self.bound_seconds, PATIENT_SECONDS) if phase in (SCORING, WRITING) else self.bound_seconds

    def _still_seconds(self, process: _Followed) -> float:
        """Since when nothing moved; a rank that waits for its loader workers moves as long as they do."""
        waits = process.mark is not None and process.mark.phase == WAITING_FOR_DATA
        moved = [process.moved, *(one.moved for one in self._loaders_of(process) if waits)]
        return self._now - max(moved)

    def _loaders_of(self, rank: _Followed) -> list[_Followed]:
        """Those that the rank's present process began: an earlier one, before a restart, may have left beacons."""
        return [
            one for _, one in sorted(self._loaders.items()) if rank.mark and one.mark and one.mark.parent == rank.mark.pid
        ]

    def _report(self, process: _Followed, work: dict[Path, float], stacks: dict[Path, str]) -> Report:
        place = process.place
        return Report(
            process.rank,
            process.mark,
            state=process.state,
            late=self._late(process),
            still_seconds=self._now - process.moved,
            cpu=work.get(place, 0.0),
            stack=stacks.get(place, ""),
            loader=process.loader,
            loaders=tuple(self._report(one, work, stacks) for one in self._loaders_of(process)),
        )


class _Followed:
    """One process as the watch knows it."""

    def __init__(self, folder: Path, rank: int, loader: int | None = None) -> None:
        self.rank, self.loader, self.place = rank, loader, place_of(folder, rank, loader)
        self.mark: Mark | None = None
        self.moved = 0.0
        self.process: psutil.Process | None = None

    def notice(self, now: float) -> None:
        """Read the beacon; `moved` is the time of the look that saw it change, so that no two clocks are compared."""
        mark = read(self.place.with_suffix(".beacon"))
        if mark is None or mark == self.mark:
            return
        if self.mark is None or mark.pid != self.mark.pid:
            # Remembered while it is alive for certain: another process may get its number later.
            self.process = _process(mark.pid)
        self.mark, self.moved = mark, now

    @property
    def in_collective(self) -> bool:
        return self.mark is not None and self.mark.collective is not None

    @property
    def left(self) -> bool:
        return self.mark is not None and self.mark.phase == FINISHED and self.state == DEAD

    @property
    def state(self) -> str:
        if self.mark is None:
            return ABSENT
        try:
            alive = self.process is not None and self.process.is_running()
            return STATES.get(self.process.status(), RUNNING) if self.process and alive else DEAD
        except psutil.NoSuchProcess:
            return DEAD


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _work(processes: Sequence[_Followed]) -> dict[Path, float]:
    """How many cores each process uses, over CPU_SECONDS."""
    before = {one.place: _cpu_seconds(one) for one in processes}
    started = time.monotonic()
    time.sleep(CPU_SECONDS)
    seconds = time.monotonic() - started
    return {one.place: max(0.0, _cpu_seconds(one) - before[one.place]) / seconds for one in processes}


def _cpu_seconds(one: _Followed) -> float:
    try:
        times = one.process.cpu_times() if one.process else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return times.user + times.system if times else 0.0


def _stacks(processes: Sequence[_Followed]) -> dict[Path, str]:
    """What the processes that can answer write when asked for their stacks, waiting at most STACK_SECONDS."""
    asked = [one for one in processes if one.process and one.state in (RUNNING, BLOCKED)]
    sizes = {one.place: _stack_size(one) for one in asked}
    for one in asked:
        _ask(one)
    deadline, seen = time.monotonic() + STACK_SECONDS, sizes
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = {one.place: _stack_size(one) for one in asked}
        if now == seen and all(now[place] > size for place, size in sizes.items()):
            break
        seen = now
    return {place: _stack_file(place).read_bytes()[size:].decode(errors="replace") for place, size in sizes.items()}


def _ask(one: _Followed) -> None:
    if not hasattr(signal, "SIGUSR1"):
        one.place.with_suffix(".ask").touch()
    elif one.process and one.process.is_running():
        one.process.send_signal(signal.SIGUSR1)


def _stack_file(place: Path) -> Path:
    return place.with_suffix(".stack")


def _stack_size(one: _Followed) -> int:
    return _stack_file(one.place).stat().st_size

"""Finds out, from outside the ranks, that a run is stuck, and which rank is to blame; it does not end the run.

The launcher calls `Watch.look` about twice a second. What the ranks say comes from `engine/beacon.py`; whether they are
alive, busy or stopped from the operating system; where they are from their own stacks.
"""

from __future__ import annotations

import linecache
import re
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import psutil

from engine.beacon import FINISHED, READING, STARTING, WAITING_FOR_DATA, Mark, place_of, read

HUNG = 76  # the exit status of a run that was ended because it was stuck
START_SECONDS = 1800.0  # imports, downloads, compilers: everything before the first mark
LONGEST_LOOK = 2.0  # seconds; what a longer pause between two looks adds to the time that a rank stood still
CPU_SECONDS, STACK_SECONDS = 0.5, 2.0  # how long it is measured whether a process works; how long a stack is waited for
BUSY_CORES, IDLE_CORES = 0.5, 0.2
RUNNING, STOPPED, BLOCKED, DEAD, ABSENT = "running", "stopped", "blocked in the kernel", "dead", "not started"
STATES = {
    psutil.STATUS_STOPPED: STOPPED,
    psutil.STATUS_TRACING_STOP: STOPPED,
    psutil.STATUS_DISK_SLEEP: BLOCKED,
    psutil.STATUS_ZOMBIE: DEAD,
    psutil.STATUS_DEAD: DEAD,
}
# Where the innermost frame of a rank is that waits for others, or for autograd's own threads.
WAITING_IN_TORCH = re.compile(r"[/\\]torch[/\\](distributed[/\\]|autograd[/\\]graph\.py|_tensor\.py)")
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        source = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line} in {self.function}" + (f": {source}" if source else "")


@dataclass(frozen=True)
class Report:
    """A rank, or a loader worker of one, at the moment of the diagnosis.

    `late` tells whether it stood still for longer than it may. `cpu` is in cores, `stack` what faulthandler wrote of all
    threads, empty where the process did not answer.
    """

    rank: int
    mark: Mark | None = None
    state: str = RUNNING
    late: bool = True
    still_seconds: float = 0.0
    cpu: float = 0.0
    stack: str = ""
    loader: int | None = None
    loaders: tuple[Report, ...] = ()

    @property
    def name(self) -> str:
        return f"rank {self.rank}" if self.loader is None else f"loader worker {self.loader} of rank {self.rank}"

    @property
    def collective(self) -> str | None:
        return self.mark.collective if self.mark else None

    @property
    def entered(self) -> int:
        return self.mark.entered if self.mark else 0

    @property
    def step(self) -> int:
        """-1 before the first."""
        return self.mark.step if self.mark and self.mark.step is not None else -1

    @property
    def finished(self) -> bool:
        return self.mark is not None and self.mark.phase == FINISHED

    @property
    def left(self) -> bool:
        """It ended as it should, and comes to no collective any more."""
        return self.finished and self.state == DEAD

    @cached_property
    def threads(self) -> list[list[Frame]]:
        """The frames of each thread, innermost first; the main thread comes first."""
        return _threads(self.stack)

    @property
    def waits_in_torch(self) -> bool:
        """Nothing of its own runs: the main thread waits, and autograd's threads (CUDA) are in no Python code."""
        if not self.threads:
            return False
        main, *others = self.threads
        # Python begins its own threads in _bootstrap; one that begins elsewhere was called from C++.
        called = [thread for thread in others if thread[-1].function != "_bootstrap"]
        return not called and bool(WAITING_IN_TORCH.search(main[0].file))

    @property
    def stuck_loaders(self) -> tuple[Report, ...]:
        """The loader workers to look at, where it waits for them."""
        if self.mark is None or self.mark.phase != WAITING_FOR_DATA:
            return ()
        return tuple(one for one in self.loaders if one.state != RUNNING or (one.mark and one.mark.phase == READING))

    @property
    def where(self) -> Frame | None:
        """The innermost line that is not the standard library's or an installed package's, of the process to look at."""
        source = next(iter(self.stuck_loaders), self)
        frames = [frame for thread in source.threads for frame in thread]
        own = (frame for frame in frames if not _in_library(frame, "stdlib", "purelib"))
        return next(own, frames[0] if frames else None)


@dataclass(frozen=True)
class Verdict:
    """The ranks to blame, and why, in a sentence without its full stop."""

    ranks: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """A stuck run: who is to blame (nobody where it is the connection), why, and what every rank was doing."""

    guilty: tuple[int, ...]
    why: str
    reports: tuple[Report, ...]

    def text(self) -> str:
        """The page to print: a line that says it all, then a section for every rank."""
        return "\n\n".join([f"hang: {self.why}", *(_section(report, self.guilty) for report in self.reports)]) + "\n"


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
        starting = rank.mark is None or rank.mark.phase == STARTING
        return self._still_seconds(rank) > (self.start_seconds if starting else self.bound_seconds)

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


def _threads(stack: str) -> list[list[Frame]]:
    """The threads of faulthandler's text, the main one, which it writes last, first."""
    threads: list[list[Frame]] = []
    for line in stack.splitlines():
        if "(most recent call first)" in line:
            threads.append([])
        elif threads and (found := re.match(r'  File "(.*)", line (\d+) in (.*)', line)):
            threads[-1].append(Frame(found[1], int(found[2]), found[3]))
    return [thread for thread in reversed(threads) if thread]


def guilty(reports: Sequence[Report]) -> Verdict:
    """Which ranks of a stuck run keep the others waiting; nobody where all have come to the same collective."""
    here = [report for report in reports if not report.left]
    return _broken(here) or _outside(here) or _gone(reports) or _parted(here) or _odd_one_out(here) or _connection(here)


def _broken(reports: Sequence[Report]) -> Verdict | None:
    """Ranks that cannot go on whatever the others do."""
    broken = [one for one in reports if one.state in (STOPPED, DEAD) or (one.state == ABSENT and one.late)]
    return _blamed(broken, reports) if broken else None


def _outside(reports: Sequence[Report]) -> Verdict | None:
    """Ranks that are in no collective: others may wait for them, they wait for nobody."""
    outside = [one for one in reports if one.collective is None]
    late = [one for one in outside if one.late] or outside
    return _blamed(_busy(_behind(_working(late))), reports) if outside else None


def _gone(reports: Sequence[Report]) -> Verdict | None:
    """Ranks that ended as if the run were over, while others still wait for somebody."""
    gone = [one for one in reports if one.left]
    return _blamed(gone, reports) if gone else None


def _parted(reports: Sequence[Report]) -> Verdict | None:
    """Ranks whose collectives are others than those of most ranks or, where that is a draw, than those of earlier steps."""
    numbered = [_numbered(one) for one in reports]
    for number in sorted(set.intersection(*map(set, numbered))):
        went = [names[number] for names in numbered]
        if len(set(went)) > 1:
            right = _usual(went, numbered[0], number)
            strayed = [one for one, name in zip(reports, went, strict=True) if name not in right]
            paths = ", ".join(f"rank {one.rank} went into {name}" for one, name in zip(reports, went, strict=True))
            what = f"{_names(strayed)} {'strayed' if right else 'parted'} ({_place(strayed[0])}{_samples(strayed[0])})"
            # A collective may be taken for another and succeed: the place where the ranks stand now says nothing then.
            hint = _hint(strayed) if strayed[0].entered == number else ""
            return Verdict(_ranks(strayed), f"{what}: as collective {number}, {paths}{hint}")
    return None


def _numbered(report: Report) -> dict[int, str]:
    """The last collectives of a rank by their number; the first of a run is 1."""
    history = report.mark.history if report.mark else ()
    return dict(enumerate(history, report.entered - len(history) + 1))


def _usual(went: Sequence[str], names: dict[int, str], number: int) -> set[str]:
    """Which of the collectives that ranks `went` into is the right one: none where nothing tells."""
    name, votes = Counter(went).most_common(1)[0]
    if votes > len(went) / 2:
        return {name}
    earlier = pairwise(names[one] for one in sorted(names) if one < number)
    followed = {after for before, after in earlier if before == names.get(number - 1)}
    right = followed & set(went)
    return right if right != set(went) else set()


def _odd_one_out(reports: Sequence[Report]) -> Verdict | None:
    """Ranks in the same collective as the others, which have not come as far, or compute in it while the others wait."""
    odd = _busy(_working(_behind(reports)))
    return _blamed(odd, reports) if len(odd) < len(reports) else None


def _connection(reports: Sequence[Report]) -> Verdict:
    """All have come to the same place, and nobody has anything left to do."""
    place = _place(reports[0])
    return Verdict(
        (), f"all ranks here wait in {place}, and nobody is missing: look at the network, or at ranks on other machines"
    )


def _working(reports: Sequence[Report]) -> Sequence[Report]:
    """Those whose stacks end in code of their own, where others only wait; all where there is no such difference."""
    return [one for one in reports if not one.waits_in_torch] or reports


def _behind(reports: Sequence[Report]) -> Sequence[Report]:
    """Those that have come least far."""
    least = min((one.step, one.entered) for one in reports)
    return [one for one in reports if (one.step, one.entered) == least]


def _busy(reports: Sequence[Report]) -> Sequence[Report]:
    """Those that compute, where all seem to wait in torch but only some are idle; all where there is no such difference."""
    busy = [one for one in reports if one.cpu >= BUSY_CORES]
    idle = [one for one in reports if one.cpu <= IDLE_CORES]
    tells = busy and len(busy) + len(idle) == len(reports) and all(one.waits_in_torch for one in reports)
    return busy if tells else reports


def _blamed(suspects: Sequence[Report], reports: Sequence[Report]) -> Verdict:
    waiting = [one for one in reports if one.collective is not None and one not in suspects]
    for_them = f" while {_names(waiting)} waits in {waiting[0].collective}" if waiting else ""
    return Verdict(_ranks(suspects), f"{_story(suspects)}{for_them}{_hint(suspects)}")


def _story(suspects: Sequence[Report]) -> str:
    """What the first suspect did, in the name of all."""
    first = suspects[0]
    states = {STOPPED: "is stopped", DEAD: "is dead", ABSENT: "has not started"}
    what = states.get(first.state, f"has not moved for {first.still_seconds:.1f} s")
    if first.finished:
        what = "has left the run" if first.left else "has finished, but its process does not end"
    return f"{_names(suspects)} {what} ({_place(first)}{_samples(first)})"


def _hint(suspects: Sequence[Report]) -> str:
    """What to look at."""
    first = suspects[0]
    hints = [f"its {_loader_story(one)}" for one in first.stuck_loaders]
    if first.state == STOPPED and first.mark:
        hints.append(f"go on with: kill -CONT {first.mark.pid}")
    elif first.state == DEAD and not first.left:
        hints.append("it was killed, perhaps for want of memory: look at the kernel's log")
    elif first.state == ABSENT:
        hints.append("look at what its start printed")
    elif first.state == BLOCKED:
        hints.append("look at the disk or network drive that it uses")
    if first.where:
        hints.append(f"look at {first.where}")
    return "".join(f"; {hint}" for hint in hints)


def _loader_story(loader: Report) -> str:
    assert loader.mark is not None
    what = f"loader worker {loader.loader} is {loader.state} ({loader.mark.phase}{_samples(loader)})"
    return f"{what}; go on with: kill -CONT {loader.mark.pid}" if loader.state == STOPPED else what


def _place(report: Report) -> str:
    """Where in the run a process is: the step, the phase and the collective."""
    if report.mark is None:
        return "before its first word"
    mark = report.mark
    step = [f"step {mark.step}"] if mark.step is not None else []
    waits = [f"collective {mark.entered}: {mark.collective}"] if mark.collective else []
    return ", ".join([*step, mark.phase, *waits])


def _samples(report: Report) -> str:
    mark = report.mark
    if mark is None or not mark.keys:
        return ""
    more = f" and {mark.num_keys - len(mark.keys)} more" if mark.num_keys > len(mark.keys) else ""
    return f", sample{'s' if mark.num_keys > 1 else ''} {', '.join(mark.keys)}{more}"


def _names(reports: Iterable[Report]) -> str:
    numbers = [str(one.rank) for one in reports]
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"each of ranks {', '.join(numbers)}"


def _ranks(reports: Iterable[Report]) -> tuple[int, ...]:
    return tuple(one.rank for one in reports)


def _section(report: Report, blamed: Sequence[int]) -> str:
    """All that is known of a rank and its loader workers."""
    title = f"{report.name}{' (to blame)' if report.loader is None and report.rank in blamed else ''}"
    pid = f"process {report.mark.pid}, " if report.mark else ""
    lines = [
        f"{title}: {_place(report)}{_samples(report)}",
        f"  {pid}{report.state}, {report.cpu:.0%} of a core, not moved for {report.still_seconds:.1f} s",
        *(f"  {line}" for line in _stack_text(report)),
    ]
    return "\n".join([*lines, *(_section(loader, blamed) for loader in report.loaders)])


def _stack_text(report: Report) -> list[str]:
    """The stacks, innermost lines first, the main thread's before the others'."""
    if not report.threads:
        why = "it did not answer" if report.state in (RUNNING, BLOCKED) else f"it is {report.state}"
        return [f"no stack: {why}"]
    main, *others = report.threads
    telling = [thread for thread in others if not all(_in_library(frame, "stdlib") for frame in thread)]
    lines = ["stack, innermost first:", *(f"  {frame}" for frame in main)]
    for thread in telling:
        lines += ["another thread:", *(f"  {frame}" for frame in thread)]
    hidden = len(others) - len(telling)
    return [*lines, *([f"threads in the standard library alone: {hidden}"] if hidden else [])]


def _in_library(frame: Frame, *names: str) -> bool:
    """Whether the code is the standard library's ("stdlib") or an installed package's ("purelib")."""
    installed = "purelib" if re.search(r"[/\\](site|dist)-packages[/\\]", frame.file) else "stdlib"
    return frame.file.startswith("<") or (frame.file.startswith(LIBRARIES) and installed in names)

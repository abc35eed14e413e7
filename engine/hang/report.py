"""What is known of a rank, or a loader worker of one, at the moment of the diagnosis, and how it is put into words."""

from __future__ import annotations

import linecache
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.beacon import FINISHED, READING, WAITING_FOR_DATA, Mark

RUNNING, STOPPED, BLOCKED, DEAD, ABSENT = "running", "stopped", "blocked in the kernel", "dead", "not started"
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


def _threads(stack: str) -> list[list[Frame]]:
    """The threads of faulthandler's text, the main one, which it writes last, first."""
    threads: list[list[Frame]] = []
    for line in stack.splitlines():
        if "(most recent call first)" in line:
            threads.append([])
        elif threads and (found := re.match(r'  File "(.*)", line (\d+) in (.*)', line)):
            threads[-1].append(Frame(found[1], int(found[2]), found[3]))
    return [thread for thread in reversed(threads) if thread]


def place(report: Report) -> str:
    """Where in the run a process is: the step, the phase and the collective."""
    if report.mark is None:
        return "before its first word"
    mark = report.mark
    step = [f"step {mark.step}"] if mark.step is not None else []
    waits = [f"collective {mark.entered}: {mark.collective}"] if mark.collective else []
    return ", ".join([*step, mark.phase, *waits])


def samples(report: Report) -> str:
    mark = report.mark
    if mark is None or not mark.keys:
        return ""
    more = f" and {mark.num_keys - len(mark.keys)} more" if mark.num_keys > len(mark.keys) else ""
    return f", sample{'s' if mark.num_keys > 1 else ''} {', '.join(mark.keys)}{more}"


def section(report: Report, blamed: Sequence[int]) -> str:
    """All that is known of a rank and its loader workers."""
    title = f"{report.name}{' (to blame)' if report.loader is None and report.rank in blamed else ''}"
    pid = f"process {report.mark.pid}, " if report.mark else ""
    lines = [
        f"{title}: {place(report)}{samples(report)}",
        f"  {pid}{report.state}, {report.cpu:.0%} of a core, not moved for {report.still_seconds:.1f} s",
        *(f"  {line}" for line in _stack_text(report)),
    ]
    return "\n".join([*lines, *(section(loader, blamed) for loader in report.loaders)])


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

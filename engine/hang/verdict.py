"""Which ranks of a stuck run are to blame, told from the reports of all of them alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.hang.report import ABSENT, BLOCKED, DEAD, STOPPED, Report, place, samples

BUSY_CORES, IDLE_CORES = 0.5, 0.2


@dataclass(frozen=True)
class Verdict:
    """The ranks to blame, and why, in a sentence without its full stop."""

    ranks: tuple[int, ...]
    why: str


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
            what = f"{_names(strayed)} {'strayed' if right else 'parted'} ({place(strayed[0])}{samples(strayed[0])})"
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
    return Verdict(
        (),
        f"all ranks here wait in {place(reports[0])}, and nobody is missing: look at the network, or at ranks on other machines",
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
    return f"{_names(suspects)} {what} ({place(first)}{samples(first)})"


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
    what = f"loader worker {loader.loader} is {loader.state} ({loader.mark.phase}{samples(loader)})"
    return f"{what}; go on with: kill -CONT {loader.mark.pid}" if loader.state == STOPPED else what


def _names(reports: Iterable[Report]) -> str:
    numbers = [str(one.rank) for one in reports]
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"each of ranks {', '.join(numbers)}"


def _ranks(reports: Iterable[Report]) -> tuple[int, ...]:
    return tuple(one.rank for one in reports)

"""What `profile` and `scale` share: the run that they time, and the manner of their tables and pictures. Not a verb."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import finite, replace_when_complete
from contracts.plan import Hardware, Plan
from contracts.run import RunSpec
from contracts.workload import settings_of
from tasks.plan import current_plan
from tasks.training import training_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB = 1 << 30
INK, QUIET, GRID, ACCENT, BEHIND = "#1f2933", "#66727f", "#e4e8ec", "#3b6fd4", "#a9c1ee"
# Per cent of the processors at work for others, above which times say little.
BUSY = 25
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.ymargin": 0.14,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.dpi": 160,
}


def run_to_time(workload: str, hardware: Hardware) -> RunSpec:
    """The workload's training on this machine, from params.yaml and what `download` and `parse` left.

    Raises:
        SlipwayError: when they have not run, or the settings cannot be used.
    """
    settings = settings_of(workload)
    return training_run(workload, settings, current_plan(workload, settings, hardware))


def say_if_busy() -> None:
    """Warn where other programs would be timed, too. Takes half a second."""
    import psutil

    busy = psutil.cpu_percent(interval=0.5)
    if busy > BUSY:
        print(
            f"this machine is {busy:.0f}% busy with other work, which is timed, too: repeat this on a quiet one before you change"
            " anything"
        )


def profiles(workload: str) -> Path:
    """The folder for what was measured of a workload."""
    return Path("profiles") / workload


def layout(plan: Plan) -> str:
    """Where a plan trains, in words: "ddp on 2 CPU ranks x 1 thread, fp32"."""
    kind = "GPU" if plan.device == "cuda" else "CPU"
    ranks = f"{plan.ranks} {kind} rank" + "s" * (plan.ranks > 1)
    threads = f" x {plan.threads} thread" + "s" * (plan.threads > 1) if plan.device == "cpu" else ""
    return f"{plan.backend} on {ranks}{threads}, {plan.precision}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their titles, to the right; a row that is shorter ends in words, which may be long."""
    full = [titles, *(row for row in rows if len(row) == len(titles))]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in [titles, *rows])


def number(value: float) -> str:
    """Three digits, at least: 1,234 or 56.7 or 0.123."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each row under the names of the first; what is no number is left empty."""
    with replace_when_complete(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(finite(row) for row in rows)


@contextmanager
def picture(path: Path, title: str, subtitle: str, *, panels: int) -> Iterator[list[Axes]]:
    """Panels side by side under a title, to be drawn on; written to `path` as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * panels, 4.1), layout="constrained")
        figure.get_layout_engine().set(rect=(0.01, 0.01, 0.98, 0.82), wspace=0.06)  # pyright: ignore
        yield list(figure.subplots(1, panels, squeeze=False)[0])
        _entitle(figure, title, subtitle)
        with replace_when_complete(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _entitle(figure: Figure, title: str, subtitle: str) -> None:
    figure.text(0.015, 0.965, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.015, 0.895, subtitle, fontsize=9, color=QUIET, va="top")


def bars(axes: Axes, labels: Sequence[str], heights: Sequence[float], *, marked: int | None = None) -> None:
    """A bar for each label with its number above (0: there is none); all but the marked one step back."""
    places = range(len(labels))
    faces = [ACCENT if marked in (None, place) else BEHIND for place in places]
    axes.bar(places, heights, min(0.62, 0.2 * len(labels)), color=faces)
    for place, height in zip(places, heights, strict=True):
        text, colour = (number(height), INK) if height else ("does not\nfit", QUIET)
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        axes.annotate(text, (place, height), color=colour, fontsize=8.5, **above)
    places_on(axes, labels)


def places_on(axes: Axes, labels: Sequence[str]) -> None:
    """Name the places along the x axis, with air at both ends however few there are."""
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(bottom=0)

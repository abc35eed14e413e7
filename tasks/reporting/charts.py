"""Charts as inline SVG that takes its text and grid colours from the page, so that they read well on light and on dark; and as
PNG for where there is no page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.workload import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that become `currentColor` and the page's own variable in the SVG; the first is as good as black.
INK, GRID = "#010203", "#040506"
ACCENT = "#3b6fd4"
COLOURS = (ACCENT, "#e07b39", "#2a9d78", "#c4518c", "#8b6fd6", "#b08d1e", "#2f9fbf", "#d3544a", "#6b8e3d", "#a0674b")
MAX_LEGEND = 12
MAX_NUMBERS = 14
MAX_LABELS = 40
# Below the bars of a chart, in one line.
MAX_LETTERS = 60


def draw(chart: Chart, *, height: float = 3.2) -> str:
    """The chart as an <svg> element; it is as wide as its place. `height` is for a width of 6."""
    with page_style():
        return svg(plotted(chart, height))


def png(chart: Chart) -> bytes:
    """The chart on white."""
    written = io.BytesIO()
    with page_style(grid="#d0d7de", background="white"):
        plotted(chart, 3.2).savefig(written, format="png", dpi=150, metadata={"Software": None})
    return written.getvalue()


def plotted(chart: Chart, height: float) -> Figure:
    """The chart, of width 6 unless it is a matrix."""
    from matplotlib.figure import Figure

    if chart.kind == "matrix":
        size = min(3.2 + 0.14 * len(chart.matrix), 9.0)
        figure = Figure(figsize=(size + 0.6, size), layout="constrained")
        draw_matrix(figure.subplots(), chart)
    else:
        figure = Figure(figsize=(6.0, height), layout="constrained")
        axes = figure.subplots()
        (draw_bars if chart.kind == "bars" else draw_lines)(axes, chart)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
    return figure


@contextmanager
def page_style(*, grid: str = GRID, background: str = "none") -> Iterator[None]:
    """Matplotlib as a page wants it: quiet axes, plain text that is never read as formulas."""
    import matplotlib

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "slipway",
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "figure.facecolor": background,
        "axes.facecolor": background,
        "savefig.facecolor": background,
        "legend.frameon": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "grid.color": grid,
        "axes.edgecolor": grid,
    }
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context(style):
        yield


def draw_lines(axes: Axes, chart: Chart) -> None:
    """A line each; the main one stands out, and of many the others step back and are not named."""
    many = len(chart.lines) > MAX_LEGEND
    colours = iter(COLOURS * (len(chart.lines) // len(COLOURS) + 1))
    for name, (x, y) in chart.lines.items():
        y = np.array([math.nan if value is None else value for value in y], dtype=float)
        if name == chart.main:
            colour = INK
            axes.plot(x, y, color=INK, linewidth=2.2, label=shown(name), zorder=3)
        else:
            colour = next(colours)
            width, alpha = (0.8, 0.35) if many else (1.6, 1.0)
            marker = "o" if len(y) < 2 else None
            axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, marker=marker, label="_" if many else shown(name))
        if name in chart.bands:
            low, high = chart.bands[name]
            axes.fill_between(list(x), list(low), list(high), color=colour, alpha=0.15, linewidth=0)
    if len(chart.lines) > 1 and (not many or chart.main in chart.lines):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, handlelength=1.2)
    axes.margins(x=0.01)


def shown(name: str) -> str:
    """A name as a legend shows it: matplotlib leaves out those that start with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def draw_bars(axes: Axes, chart: Chart) -> None:
    """Bars side by side, one colour a name."""
    width = 0.8 / max(len(chart.lines), 1)
    for number, (name, (x, y)) in enumerate(chart.lines.items()):
        places = np.arange(len(x)) + (number - (len(chart.lines) - 1) / 2) * width
        axes.bar(places, list(y), width * 0.92, color=COLOURS[number % len(COLOURS)], label=shown(name))
        labels = list(chart.labels) or [f"{value:g}" for value in x]
        crowded = sum(map(len, labels)) > MAX_LETTERS
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(np.arange(len(x)), labels, **turned)
    if not any(value for _, y in chart.lines.values() for value in y):
        axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    if len(chart.lines) > 1:
        axes.legend(fontsize=8)


def draw_matrix(axes: Axes, chart: Chart) -> None:
    """Rows of squares, the fuller the deeper; with numbers while there is room for them."""
    if not len(chart.matrix):
        axes.set_axis_off()
        return
    values = np.array([[math.nan if value is None else value for value in row] for row in chart.matrix], dtype=float)
    shares = np.nan_to_num(values / max(np.nanmax(values, initial=0), 1e-12))
    red, green, blue = (int(ACCENT[start : start + 2], 16) / 255 for start in (1, 3, 5))
    squares = np.empty((*values.shape, 4))
    squares[:] = (red, green, blue, 0)
    squares[..., 3] = 0.03 + 0.97 * shares**0.8
    axes.imshow(squares, interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if len(chart.labels) <= MAX_LABELS:
        axes.set_xticks(
            range(values.shape[1]), list(chart.labels)[: values.shape[1]], rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(values.shape[0]), list(chart.labels)[: values.shape[0]])
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if len(values) > MAX_NUMBERS:
        return
    whole = np.nanmax(values, initial=0) > 1
    for (row, column), value in np.ndenumerate(values):
        if value > (0 if whole else 0.004):
            colour = "white" if shares[row, column] > 0.45 else INK
            text = f"{value:,.0f}" if whole else f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def svg(figure: Figure) -> str:
    """The figure as an element for the inside of a page: no XML header, no metadata, no fixed size, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")

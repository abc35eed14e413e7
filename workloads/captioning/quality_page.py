"""The data quality report as a page: Markdown and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import replace_when_complete

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET, GRID, ACCENT = "#1f2933", "#66727f", "#e4e8ec", "#3b6fd4"
SHOWN_CHARACTERS = 120


def write_page(folder: Path, report: Mapping[str, Any]) -> None:
    """quality.md and the PNG files that it shows."""
    _draw(folder, report)
    with replace_when_complete(folder / "quality.md") as temporary:
        temporary.write_text("\n".join(_page(report)) + "\n", encoding="utf-8")


def _page(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    captions, objects, meanings = report["captions"], report["objects"], report["meanings"]
    yield from ("# Data quality", "", *(f"* {one}" for one in report["findings"]))
    yield from ("", "## Captions", "", "![Length of captions](lengths.png)", "")
    quantiles = [[f"{percent}% have at most", f"{value:g} words"] for percent, value in captions["quantiles"].items()]
    yield from _table(["captions", "length"], [*quantiles, ["the longest", f"{captions['longest']} words"]])
    each = [[number, f"{share:.1%}"] for number, share in report["pictures"]["captions_each"].items()]
    yield from ("", *_table(["captions a picture", "share of pictures"], each))
    yield from ("", "## Duplicates", "", meanings["duplicates.exact"], "", *_duplicates(report["duplicates"]["exact"]))
    yield from (f"* {one['times']} times: {_quoted(one['caption'])}" for one in report["duplicates"]["exact"]["examples"])
    yield from ("", meanings["duplicates.near"], "", *_duplicates(report["duplicates"]["near"]))
    yield from ("* " + " | ".join(map(_quoted, texts)) for texts in report["duplicates"]["near"]["examples"])
    same = report["pictures"]["same_bytes"]
    yield from ("", f"{meanings['pictures.same_bytes']} {same['pictures']:,} ({same['share']:.1%}) are such.")
    yield from ("", *("* " + ", ".join(map(_quoted, keys)) for keys in same["examples"])) if same["examples"] else ()
    yield from ("", "## Words", "", "![Growth of the vocabulary](vocabulary.png)", "", meanings["objects"], "")
    yield from ("![Most frequent content words](words.png)", "", "![Balance of content words](balance.png)", "")
    shares = [[f"the {top} most frequent", f"{share:.1%} of all mentions"] for top, share in objects["top_share"].items()]
    rare = objects["rare"]
    shares.append([f"in fewer than {rare['in_fewer_than']} captions", f"{rare['words']:,} words ({rare['share']:.1%})"])
    yield from _table(["content words", "share"], shares)
    yield from ("", f"Rare ones: {', '.join(rare['examples']) or 'none'}.", "")
    yield from ("## Protected terms", "", meanings["terms"], "", "![Captions with protected terms](terms.png)", "")
    yield from _table(["group", "captions"], [[_plain(group), f"{rate:.2%}"] for group, rate in report["terms"].items()])
    weights = report["weights"]
    yield from ("", "## Weights for sampling", "", f"`{weights['file']}`: {weights['meaning']}", "")
    yield f"From {weights['smallest']:.2f} to {weights['largest']:.2f}. {meanings['weights.effective_share']} Here it is"
    yield f"{weights['effective_share']:.2f}."


def _duplicates(found: Mapping[str, Any]) -> list[str]:
    across = f"{found['share_across_pictures']:.1%} of all with captions of other pictures"
    return [f"{found['captions']:,} captions ({found['share']:.1%}) are such, {across}.", ""]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def _quoted(text: str) -> str:
    """A caption on one line, shortened, that Markdown does not read."""
    line = " ".join(text.replace("`", "'").split())
    return f"`{line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + '…'}`"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _draw(folder: Path, report: Mapping[str, Any]) -> None:
    histogram, growth = report["captions"]["histogram"], report["vocabulary"]["growth"]
    objects, terms = report["objects"], report["terms"]
    with _picture(folder / "lengths.png", "Length of captions", "words", "captions") as axes:
        axes.bar([int(length) for length in histogram], list(histogram.values()), 0.9, color=ACCENT)
    with _picture(folder / "vocabulary.png", "Growth of the vocabulary", "captions read", "different words") as axes:
        axes.plot(growth["captions"], growth["words"], color=ACCENT, linewidth=1.8)
        axes.set_ylim(bottom=0)
    frequent = objects["most_frequent"][::-1]
    with _picture(folder / "words.png", "Most frequent content words", "captions", "", height=6.2) as axes:
        axes.barh([word for word, _ in frequent], [number for _, number in frequent], 0.75, color=ACCENT)
    title = f"Balance of content words (Gini {objects['gini']:.2f})"
    with _picture(folder / "balance.png", title, "share of words, rarest first", "share of mentions") as axes:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="all equal")
        axes.plot(objects["lorenz"]["words"], objects["lorenz"]["counts"], color=ACCENT, linewidth=1.8, label="captions")
        axes.legend()
    with _picture(folder / "terms.png", "Captions with protected terms", "share of captions", "") as axes:
        axes.barh([_plain(group) for group in terms][::-1], list(terms.values())[::-1], 0.6, color=ACCENT)
        axes.set_xlim(left=0, right=None if any(terms.values()) else 1)


@contextmanager
def _picture(path: Path, title: str, x: str, y: str, *, height: float = 3.4) -> Iterator[Axes]:
    """Axes under a title, to be drawn on; written to `path` as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "grid.color": GRID,
        "axes.edgecolor": GRID,
        "axes.labelcolor": QUIET,
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
        **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, height), layout="constrained", dpi=130)
        axes = figure.subplots()
        yield axes
        axes.set(title=title, xlabel=x, ylabel=y)
        with replace_when_complete(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})

"""The small base models that are made on the spot: there are no downloaded ones offline, and a frozen random one means nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import read_json, replace_when_complete, write_json
from contracts.records import Records
from contracts.workload import ROOT
from workloads.captioning.settings import BaseSteps

HERE = Path(__file__).parent
# What decides the weights of each: a change in one of these files makes it anew.
CODE: Mapping[str, tuple[Path, ...]] = {
    "vision": (HERE / "vision.py", HERE / "learning.py", HERE.parent / "scenes.py", HERE.parent / "phrases.py"),
    "language": (HERE / "language.py", HERE / "learning.py", HERE.parent / "scenes.py", HERE.parent / "phrases.py"),
}

# In the folder of each: the figures that it reached, by name.
REACHED = "reached.json"

# Pictures whose captions a language model learns from, evenly chosen where there are more.
MOST_PICTURES = 20_000


def make(
    folder: Path, steps: BaseSteps, *, kinds: Sequence[str] = tuple(CODE), captions: Sequence[str] | None = None
) -> dict[str, Path]:
    """Folders below `folder` with a vision encoder and a language model, as `from_pretrained` of transformers opens them.

    Those of `kinds` are trained at the same time, each on one thread, unless they are there already. Tokenizer and language model
    learn from `captions`, or from those of the embedded data set. The keys hold the code they came from, their steps and
    the captions.

    Raises:
        SlipwayError: when one of the trainings failed; it has printed why.
    """
    counts, taught = steps.model_dump(), folder / "captions.json"
    digests = {"vision": "", "language": "" if captions is None else _digest(captions)}
    wanted = {kind: folder / f"{kind}-{_key(CODE[kind], counts[kind], digests[kind])}" for kind in kinds}
    missing = {kind: place for kind, place in wanted.items() if not place.exists()}
    if captions is not None and "language" in missing:
        write_json(taught, list(captions))
    texts = {"language": [str(taught)] if captions is not None else []}
    running = {
        kind: subprocess.Popen([sys.executable, "-m", __name__, kind, str(place), str(counts[kind]), *texts.get(kind, [])])
        for kind, place in missing.items()
    }
    failed = [kind for kind, process in running.items() if process.wait()]
    if failed:
        raise SlipwayError(f"the base model for {' and '.join(failed)} could not be made: its own error stands above")
    return wanted


def captions_of(records: Records) -> list[str]:
    """All captions of the records, or of MOST_PICTURES of them."""
    import pyarrow.compute as pc

    some = records.take(np.linspace(0, len(records) - 1, min(len(records), MOST_PICTURES)).astype(np.int64))
    return pc.list_flatten(pc.struct_field(some.table["targets"].take(some.positions), "captions")).to_pylist()  # pyright: ignore


def _digest(captions: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()


def _key(files: tuple[Path, ...], steps: int, captions: str) -> str:
    digest = hashlib.sha256(f"{steps} {captions}".encode())
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def train(kind: str, place: Path, steps: int, captions: Path | None = None) -> None:
    """Train the base model of a kind and put it at `place` when it is complete, with what it reached; `captions` is a JSON list
    of texts."""
    from workloads.captioning.base import language, vision

    with replace_when_complete(place) as temporary:
        temporary.mkdir(parents=True)
        if kind == "vision":
            reached = vision.train(temporary, steps)
        else:
            reached = language.train(temporary, steps, captions=read_json(captions) if captions else None)
        write_json(temporary / REACHED, reached)

"""The small base models of the embedded data set: there are no downloaded ones offline, and a frozen random one means nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.workload import ROOT
from workloads.captioning.settings import BaseSteps

HERE = Path(__file__).parent
# What decides the weights of each: a change in one of these files makes it anew.
CODE: Mapping[str, tuple[Path, ...]] = {
    "vision": (HERE / "vision.py", HERE / "learning.py", HERE.parent / "scenes.py", HERE.parent / "phrases.py"),
    "language": (HERE / "language.py", HERE / "learning.py", HERE.parent / "scenes.py", HERE.parent / "phrases.py"),
}


def make(folder: Path, steps: BaseSteps) -> dict[str, Path]:
    """Folders below `folder` with a vision encoder and a language model, as `from_pretrained` of transformers opens them.

    Both are trained at the same time, each on one thread, unless they are there already. Their keys hold the code they came from and
    their steps.

    Raises:
        SlipwayError: when one of the two trainings failed; it has printed why.
    """
    counts = steps.model_dump()
    wanted = {kind: folder / f"{kind}-{_key(CODE[kind], counts[kind])}" for kind in CODE}
    missing = {kind: place for kind, place in wanted.items() if not place.exists()}
    running = {
        kind: subprocess.Popen([sys.executable, "-m", __name__, kind, str(place), str(counts[kind])])
        for kind, place in missing.items()
    }
    failed = [kind for kind, process in running.items() if process.wait()]
    if failed:
        raise SlipwayError(f"the base model for {' and '.join(failed)} could not be made: its own error stands above")
    return wanted


def _key(files: tuple[Path, ...], steps: int) -> str:
    digest = hashlib.sha256(str(steps).encode())
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def train(kind: str, place: Path, steps: int) -> None:
    """Train the base model of a kind and put it at `place` when it is complete."""
    from workloads.captioning.base import language, vision

    with replace_when_complete(place) as temporary:
        temporary.mkdir(parents=True)
        (vision if kind == "vision" else language).train(temporary, steps)

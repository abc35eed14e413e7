"""Checks a run in its own ranks before it starts: `examine` starts them, as the plan launches a run, and passes on what they find."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from contracts.errors import Hung
from contracts.preflight import Estimate, Finding
from contracts.run import RunSpec
from engine.hang import Watch
from engine.launch import LOG, LOOK_SECONDS, POLL_SECONDS, errors_in, own_errors, ranks

# Longer than any check takes in which no rank moves.
LONGEST_SILENCE = 120.0
FINDINGS = "findings.jsonl"


def examine(spec: RunSpec, *, shortest: float = 0.0) -> Iterator[Finding | Estimate]:
    """What the checks find in the ranks of a run, as they find it, and once what the run will take; nothing of it is kept.

    A run that takes less than `shortest` seconds is only measured. A check that ends the ranks is a failed finding itself.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-preflight-") as folder:
        output = Path(folder)
        spec = replace(spec, output=folder)
        silence = max(spec.plan.longest_silence, LONGEST_SILENCE)
        with ranks(spec, "engine.preflight", str(shortest), silence=silence) as (process, watch):
            try:
                yield from _followed(process, watch, output)
            except Hung as hung:
                yield _ended(str(hung), "a rank stood still", "see the stack above: what it names waits for ever")
                return
        if process.returncode:
            yield _failure(output, process.returncode)


def _followed(process: subprocess.Popen[bytes], watch: Watch, output: Path) -> Iterator[Finding | Estimate]:
    """What rank 0 has written, line by line, until the ranks end.

    Raises:
        Hung: when one of them stands still.
    """
    looked, told, running = time.monotonic(), 0, True
    while running:
        running = process.poll() is None
        lines = _lines(output / FINDINGS)
        yield from (_read(line) for line in lines[told:])
        told = len(lines)
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            if diagnosis := watch.look():
                raise Hung(diagnosis.text())
        time.sleep(POLL_SECONDS if running else 0)


def _lines(path: Path) -> list[str]:
    """The complete lines of a file that may still be growing."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _read(line: str) -> Finding | Estimate:
    value = json.loads(line)
    return Finding(**value) if "name" in value else Estimate(**value)


def _failure(output: Path, status: int) -> Finding:
    """The finding that a rank did not come to the end of the checks."""
    own = own_errors(errors_in(output))
    if not own:
        said = " | ".join((output / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        return _ended(
            f"the ranks ended without a word (status {status}): {said}", "killed, perhaps for want of memory", "free some"
        )
    first = own[0]
    known = first["kind"] in ("SlipwayError", "OutOfMemory")
    what = first["message"] if known else f"{first['kind']}: {first['message']}"
    return _ended(f"rank {first['rank']}: {what}", "training would end in the same way", "mend what it names")


def _ended(reason: str, cause: str, remedy: str) -> Finding:
    return Finding("training steps", "failed", reason, cause, remedy)

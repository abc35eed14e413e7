"""Checks a run in its own ranks before it starts: `python -m engine.preflight SPEC.json SECONDS`, as the plan launches it.

`examine` starts them and passes on what they find; the checks themselves stand in `engine/checks.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from contracts.errors import Hung
from contracts.files import read_json, write_json
from contracts.preflight import Estimate, Finding
from contracts.run import RunSpec
from engine import beacon
from engine.hang import Watch
from engine.launch import LOOK_SECONDS, POLL_SECONDS, command, end, environment
from engine.worker import _end_with_parents, _kind

# Longer than any check takes in which no rank moves.
LONGEST_SILENCE = 120.0
FINDINGS, ESTIMATE, LOG = "findings.jsonl", "estimate.json", "log.txt"


def examine(spec: RunSpec, *, shortest: float = 0.0) -> Iterator[Finding | Estimate]:
    """What the checks find in the ranks of a run, as they find it, and once what the run will take; nothing of it is kept.

    A run that takes less than `shortest` seconds is only measured. A check that ends the ranks is a failed finding itself.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-preflight-") as folder:
        output = Path(folder)
        spec = replace(spec, output=folder)
        spec.write(output / "spec.json")
        words = [*command(spec.plan, output / "spec.json", module="engine.preflight"), str(shortest)]
        silence = max(spec.plan.longest_silence, LONGEST_SILENCE)
        watch = Watch(output / "beacons", range(spec.plan.ranks), silence)
        with (output / LOG).open("wb") as log:
            process = subprocess.Popen(words, env=environment(spec.plan), stdout=log, stderr=subprocess.STDOUT)
        try:
            yield from _followed(process, watch, output)
        except Hung as hung:
            yield _ended(str(hung), "a rank stood still", "see the stack above: what it names waits for ever")
            return
        finally:
            end(process)
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
    errors = sorted((read_json(path) for path in output.glob("error-*.json")), key=lambda error: error["time"])
    own = [error for error in errors if error["kind"] != "LostRank"]
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


def main(path: str, shortest: float) -> int:
    """What runs in every rank; gives the exit status. Rank 0 writes what is found, line by line, into the run's folder."""
    _end_with_parents()
    spec, rank = RunSpec.read(Path(path)), int(os.environ.get("RANK", "0"))
    output = Path(spec.output)
    beacon.start(output / "beacons", rank)

    def tell(found: Finding | Estimate) -> None:
        with (output / FINDINGS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    try:
        from engine.checks import check

        check(spec, tell=tell, shortest=shortest)
        beacon.finish()
    except BaseException as error:
        words = {"rank": rank, "kind": _kind(error), "message": str(error), "time": time.time()}
        write_json(output / f"error-{rank}.json", words)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))

"""What an unfinished training of the same workload has to do with one that begins: said once, at its start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contracts.files import read_json, write_json
from contracts.run import RunSpec
from tasks.training import identity

Identity = Mapping[str, Mapping[str, Any]]
# The file of a run's folder with what its fingerprint is made of.
NOTE = "identity.json"
NAMES = {"settings": "settings of train", "data": "data", "code": "code of the workload"}
MOST_NAMED = 4


def announce(spec: RunSpec) -> None:
    """Note what names this run and, where it begins anew beside an unfinished one, say what sets the two apart and how to go back."""
    output = Path(spec.output)
    write_json(output / NOTE, identity(spec))
    left = [one for one in output.parent.glob("*") if _checkpoints(one) and not (one / "result.json").exists()]
    if _checkpoints(output) or not left:
        return
    last = max(left, key=lambda one: _checkpoints(one)[-1].stat().st_mtime)
    steps = int(_checkpoints(last)[-1].name.removeprefix("step-"))
    noted = (last / NOTE).is_file()
    differs = difference(read_json(last / NOTE), read_json(output / NOTE)) if noted else "what differs was not noted then"
    print(
        f"training begins at step 0, as fingerprint {output.name}: an unfinished training of {steps:,} steps is left in {last}, whose"
        f" fingerprint is {last.name}; {differs}.\nRestore that, and the same command goes on from those steps; or remove the folder to"
        " give them up",
        flush=True,
    )


def _checkpoints(run: Path) -> list[Path]:
    """The folders of a run's complete checkpoints, oldest first."""
    return sorted(path.parent for path in run.glob("checkpoints/step-*/manifest.json"))


def difference(then: Identity, now: Identity) -> str:
    """What of a run's identity is another than it was."""
    said = []
    for part, name in NAMES.items():
        before, after = then[part], now[part]
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        words = [f"{key} {before.get(key)}, now {after.get(key)}" if part == "settings" else key for key in keys]
        more = [f"{len(words) - MOST_NAMED} more"] if len(words) > MOST_NAMED else []
        if words:
            said.append(f"{name} ({', '.join([*words[:MOST_NAMED], *more])})")
    return f"what differs: {'; '.join(said)}"

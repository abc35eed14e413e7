"""Where a model comes from: the revision of the code, and the hashes that DVC recorded of what each stage read and wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

# What runs and benchmarks write themselves says nothing of the code.
WRITTEN = ("dvc.lock", "benchmarks/results", "docs/images")


def git_state() -> dict[str, Any] | None:
    """Revision, its date, whether files differ from it and the first of those; None where there is no commit to name."""
    revision = git("log", "-1", "--format=%H %cs")
    if not revision:
        return None
    name, date = revision.split()
    differing = git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in WRITTEN)) or ""
    files = [line.split(maxsplit=1)[1] for line in differing.splitlines()]
    return {"revision": name, "date": date, "changed": bool(files), "files": files[:50]}


def git(*arguments: str) -> str | None:
    """What git answers, or None where there is no git or no repository."""
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def locked_stages(workload: str) -> dict[str, Any]:
    """What dvc.lock holds of this workload's stages: {"train@segmentation": {"deps": {path: md5}, "outs": {path: md5}}}."""
    import yaml

    path = Path("dvc.lock")
    stages = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {}) if path.is_file() else {}
    return {
        name: {part: {one["path"]: hash_of(one) for one in stage.get(part, [])} for part in ("deps", "outs")}
        for name, stage in stages.items()
        if name.endswith(f"@{workload}")
    }


def hash_of(file: dict[str, Any]) -> str:
    """Of a dependency or an output, as DVC wrote it down."""
    return file.get("md5") or file.get("hash") or ""

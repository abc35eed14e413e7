"""What a piece of code makes a new process import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from contracts.workload import ROOT


def loaded(code: str, folder: Path = ROOT) -> set[str]:
    """The top-level modules that are loaded in a new process after `code`, which ran in `folder`."""
    program = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())

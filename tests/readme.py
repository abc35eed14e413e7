"""The commands that README.md shows, for the tests that run them as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent


def commands() -> list[str]:
    """Every line of a bash block without its comment, and what stands in the text between backticks and begins with .venv/bin."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    lines += re.findall(r"`(\.venv/bin/[^`\n]+)`", text)
    return list(dict.fromkeys(filter(None, (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines))))


def readme_command(text: str) -> list[str]:
    """A command of the README as a list of words, its program taken from this environment. The README must show it."""
    assert text in commands(), f"README.md shows no command {text!r}"
    program, *arguments = shlex.split(text)
    return [str(PROGRAMS / Path(program).name), *arguments]

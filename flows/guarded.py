"""Starting a command under the guard, and ending it with everything that it started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

GUARD = Path(__file__).with_name("guard.py")
GRACE_SECONDS = 20.0


def start_guarded(
    command: Sequence[str], *, environment: Mapping[str, str], output: int | IO[bytes], grace: float = GRACE_SECONDS
) -> subprocess.Popen[bytes]:
    """The guard process of a running `command`, whose stdout and stderr go to `output`. It ends at the latest with us.

    This environment's programs (`python` among them) come first on the command's PATH, whether it was activated or not.
    """
    programs = str(Path(sys.executable).parent)
    variables = {**os.environ, **environment, "PATH": programs + os.pathsep + os.environ.get("PATH", "")}
    return subprocess.Popen(
        [sys.executable, str(GUARD), str(grace), *command],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=os.name == "posix",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


@contextmanager
def guarded(command: Sequence[str], *, environment: Mapping[str, str], output: int) -> Iterator[subprocess.Popen[bytes]]:
    """The same; leaving the block ends the command and everything that it started."""
    process = start_guarded(command, environment=environment, output=output)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

"""How a process ends that has loaded much."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable


def leave(work: Callable[[], int]) -> None:
    """Do `work`, and have this process end with the status that it gives as soon as all that waits for its end is done.

    That is, threads and what asks `atexit` from now on: Python would then take apart all that was imported, a second where torch was,
    for which the next stage, or the new start after a lost rank, would wait. Where `work` raises, the status is 1, and 130 for Ctrl-C.
    """
    status = 1

    def go() -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

    atexit.register(go)  # what is registered first comes last
    try:
        status = work()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
        raise

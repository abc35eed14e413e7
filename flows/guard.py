"""A small process between a flow and what it starts: when the flow is gone, or asks for it, everything below ends.

`python guard.py GRACE COMMAND...` runs the command, whose output and status are its own. Its standard input is a pipe that
only the flow holds: end-of-file means that the flow has died, however that happened. It is not part of the flow's process
group, so that Ctrl-C in a terminal reaches the flow alone, which then lets the stage end in good order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading

import psutil

PR_SET_CHILD_SUBREAPER = 36


def main(grace: float, command: list[str]) -> int:
    """Run `command` to its end, or to ours: descendants get SIGTERM, and after `grace` seconds SIGKILL."""
    _adopt_orphans()
    why: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: why.put("asked"))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_tell_when_parent_is_gone, args=(why,), daemon=True).start()
    threading.Thread(target=_tell_when_ended, args=(child, why), daemon=True).start()
    ended = why.get() == "ended"
    end_descendants(1.0 if ended else grace)
    return child.wait() if ended else 128 + signal.SIGTERM


def _adopt_orphans() -> None:
    """Ranks of a training live in sessions of their own: on Linux they become our children when their parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _tell_when_parent_is_gone(why: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    why.put("parent gone")


def _tell_when_ended(child: subprocess.Popen[bytes], why: queue.SimpleQueue[str]) -> None:
    child.wait()
    why.put("ended")


def end_descendants(grace: float) -> None:
    """Ask every process below this one to end, wait `grace` seconds, and kill what is left, until nothing is."""
    below = psutil.Process().children(recursive=True)
    _each(below, "terminate")
    psutil.wait_procs(below, timeout=grace)
    while below := [process for process in psutil.Process().children(recursive=True) if _lives(process)]:
        _each(below, "kill")
        psutil.wait_procs(below, timeout=1.0)


def _each(processes: list[psutil.Process], action: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            getattr(process, action)()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))

"""A process ends when what waits for its end is done, and not later."""

from __future__ import annotations

import subprocess
import sys

import pytest

from contracts.workload import ROOT

# A thread that is still writing, somebody who wants to be told, and what Python would take apart.
ENDING = """
import atexit, threading, time
from contracts.ending import leave

class Imported:
    def __del__(self):
        print("taken apart")

imported = Imported()

def interrupted():
    raise KeyboardInterrupt

def work():
    threading.Thread(target=lambda: (time.sleep(0.2), print("written"))).start()
    atexit.register(print, "told")
    return STATUS

leave(work)
"""


@pytest.mark.parametrize(("status", "given", "error"), [("3", 3, ""), ("1 / 0", 1, "Zero"), ("interrupted()", 130, "Key")])
def test_threads_and_what_asks_for_it_are_done_and_nothing_is_taken_apart(status: str, given: int, error: str) -> None:
    words = [sys.executable, "-c", ENDING.replace("STATUS", status)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("written\ntold\n", given)
    assert error in ended.stderr and bool(ended.stderr) == bool(error)

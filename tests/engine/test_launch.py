"""What a rank is started with, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from contracts.plan import Plan
from engine.launch import environment

PLAN = Plan("single", "cpu", 1, 1, 1, 1, 0, 2, "fp32", {})
# Twenty times four blocks of 8 MiB, written and freed, as a step's activations are; prints how many pages the system had to give.
BLOCKS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(20):
    blocks = [ctypes.c_void_p(libc.malloc(8 << 20)) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""

# A rank's end: a thread that is still writing, somebody who wants to be told, and what Python would take apart.
ENDING = """
import atexit, threading, time
from engine.worker import leave

class Imported:
    def __del__(self):
        print("taken apart")

imported = Imported()

def work():
    threading.Thread(target=lambda: (time.sleep(0.2), print("written"))).start()
    atexit.register(print, "told")
    return {status}

leave(work)
"""


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="is about glibc's malloc")
def test_a_rank_keeps_memory_that_it_will_want_again() -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = [
        int(subprocess.run([sys.executable, "-c", BLOCKS], env=variables, capture_output=True, check=True).stdout)
        for variables in (bare, environment(PLAN))
    ]
    assert faults[0] - faults[1] > 10 * (32 << 20) // os.sysconf("SC_PAGE_SIZE")


def test_what_the_user_sets_for_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "12345")
    assert environment(PLAN)["MALLOC_TRIM_THRESHOLD_"] == "12345"


@pytest.mark.parametrize(("status", "given"), [("3", 3), ("1 / 0", 1)])
def test_a_rank_ends_once_what_waits_for_its_end_is_done_and_python_is_not_taken_apart(status: str, given: int) -> None:
    words = [sys.executable, "-c", ENDING.format(status=status)]
    ended = subprocess.run(words, env=environment(PLAN), capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("written\ntold\n", given)
    assert ("ZeroDivisionError" in ended.stderr) == (given == 1)

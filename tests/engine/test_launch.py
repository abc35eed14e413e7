"""What a rank is started with."""

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

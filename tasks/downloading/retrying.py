"""Trying again what may succeed later: a server that is busy, a connection that broke."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0


def pause_before(attempt: int, first: float, *, asked: float | None = None) -> float:
    """Seconds to wait before the attempt after number `attempt` (from 1): doubling, a little random, or what the server asked."""
    pause = min(first * 2 ** (attempt - 1), LONGEST_PAUSE)
    return min(max(asked or 0.0, pause * random.uniform(0.75, 1.25)), 5 * LONGEST_PAUSE)


def wait(attempt: int, first: float, what: str, why: str, *, attempts: int, asked: float | None = None) -> None:
    """Say that an attempt failed, and sleep until the next is due."""
    seconds = pause_before(attempt, first, asked=asked)
    print(f"{what}: {why}; attempt {attempt + 1} of {attempts} in {seconds:.0f} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def retried(
    action: Callable[[], T], *, what: str, passing: Callable[[Exception], str | None], attempts: int = 5, pause: float = 1.0
) -> T:
    """The result of `action`, tried again while `passing` says in words why its failure may pass (None: it will not)."""
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            why = passing(error)
            if why is None or attempt == attempts:
                raise
            wait(attempt, pause, what, why, attempts=attempts)
    raise AssertionError("the loop returns or raises")


def hub_trouble(error: Exception) -> str | None:
    """Why an error of huggingface_hub may pass: a busy server or a broken connection. By name, for its HTTP client has changed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answered {status}" if status in BUSY else None
    broken = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return f"the hub could not be reached ({type(error).__name__})" if broken else None

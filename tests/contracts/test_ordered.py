"""Work over processes: in order, and never far ahead of who takes the results."""

from __future__ import annotations

import pytest

from contracts import ordered


def test_work_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def tasks():
        nonlocal taken
        while taken < 100 * ordered.CHUNK:
            taken += 1
            yield taken

    monkeypatch.setattr(ordered, "ALONE_SECONDS", 0)
    results = ordered.in_order(sorted, tasks(), 2)
    assert [next(results)[1][0] for _ in range(3)] == [1, 1 + ordered.CHUNK, 1 + 2 * ordered.CHUNK]
    assert taken < (2 * ordered.AHEAD + 4) * ordered.CHUNK
    results.close()  # pyright: ignore[reportAttributeAccessIssue]

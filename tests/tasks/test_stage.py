"""How a stage that was started on the command line ends."""

from __future__ import annotations

import pytest

from contracts.errors import Hung, Interrupted, SlipwayError
from tasks.stage import status_of


@pytest.mark.parametrize(("error", "status"), [(SlipwayError, 1), (Interrupted, 75), (Hung, 76)])
def test_a_stage_ends_with_the_words_and_the_status_of_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[SlipwayError], status: int
) -> None:
    def run(workload: str) -> None:
        raise error(f"{workload} did not come to its end")

    monkeypatch.setattr("sys.argv", ["stage", "tiny"])
    assert (status_of(run), capsys.readouterr().err) == (status, "error: tiny did not come to its end\n")

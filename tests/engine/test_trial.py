"""A trial: what a step costs, part by part, and what becomes of ranks that cannot give one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import SlipwayError
from contracts.files import write_json
from contracts.run import RunSpec
from engine import beacon, stopwatch, trial
from engine.backends.single import Single
from engine.loop import OutOfMemory
from engine.trial import PARTS, Trial, run_trial

MakeSpec = Callable[..., RunSpec]
DELAY = 0.15
# Found by every Python that starts below: rank 1 is slow in each of its backwards.
SLOW_RANK = f"""
import os
if os.environ.get("RANK") == "1":
    import time
    import torch
    backward = torch.Tensor.backward
    def slow(self, *arguments, **options):
        time.sleep({DELAY})
        backward(self, *arguments, **options)
    torch.Tensor.backward = slow
"""


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[RunSpec], dict[str, Any]]]:
    """What one rank measures, without a process of its own: two steps after one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    watch = stopwatch.Stopwatch(tmp_path / "rank-0.beacon")
    monkeypatch.setattr(beacon, "_beacon", watch)
    torch.set_num_threads(1)
    yield lambda spec: stopwatch._measure(spec, watch, 2, 1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_parts_of_a_step_make_the_whole(make_spec: MakeSpec, in_this_process: Any) -> None:
    measured = in_this_process(make_spec())
    assert len(measured["seconds"]) == 2 and set(measured["parts"]) == set(PARTS)
    assert all(value > 0 for name in PARTS for value in measured["parts"][name])
    for step, seconds in enumerate(measured["seconds"]):
        assert sum(measured["parts"][name][step] for name in PARTS) == pytest.approx(seconds, rel=0.1)
    assert measured["peak_bytes"] > 100 << 20


def test_what_is_slow_shows_in_its_own_part(make_spec: MakeSpec, in_this_process: Any, monkeypatch: Any) -> None:
    backward, step = Single.backward, Single.step
    monkeypatch.setattr(Single, "backward", lambda self, loss: (time.sleep(0.1), backward(self, loss))[1])
    monkeypatch.setattr(Single, "step", lambda self, **how: (time.sleep(0.3), step(self, **how))[1])
    parts = in_this_process(make_spec())["parts"]
    assert min(parts["backward"]) > 4 * 0.1 > max(parts["forward"] + parts["sync"])
    assert min(parts["optimizer"]) > 0.3 > max(parts["data"])


def test_more_steps_than_the_run_has_can_be_timed(make_spec: MakeSpec, in_this_process: Any) -> None:
    assert len(in_this_process(make_spec(epochs=0.1))["seconds"]) == 2


def test_steps_that_only_empty_the_loaders_buffers_are_not_timed(make_spec: MakeSpec) -> None:
    plan = make_spec().plan
    assert stopwatch._buffered_steps(plan) == 0
    assert stopwatch._buffered_steps(replace(plan, workers=3, prefetch=4, accumulation=5)) == 3


def test_memory_that_runs_out_is_not_met_with_smaller_micro_batches(
    make_spec: MakeSpec, in_this_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_MEMORY_LIMIT", str(1 << 20))
    with pytest.raises(OutOfMemory, match="4 samples a micro-batch"):
        in_this_process(make_spec(micro_batch=4))


def _told(folder: Path, *kinds: str) -> Path:
    """A folder in which ranks have said why they ended."""
    (folder / "beacons").mkdir()
    (folder / "beacons" / "rank-0.beacon").touch()
    (folder / "log.txt").write_text("the traceback\n")
    for rank, kind in enumerate(kinds):
        words = {"rank": rank, "kind": kind, "message": f"words of {rank}\nmore", "time": rank}
        write_json(folder / f"error-{rank}.json", words)
    return folder


def test_want_of_memory_on_any_rank_is_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = trial._failed(_told(tmp_path, "LostRank", "OutOfMemory"), 1)
    assert found == Trial(failed="words of 1") and found.seconds == float("inf")
    assert capsys.readouterr().err == ""


def test_a_killed_rank_is_data(tmp_path: Path) -> None:
    assert "perhaps for want of memory" in trial._failed(_told(tmp_path, "LostRank"), -9).failed


def test_ranks_that_never_started_are_an_error(tmp_path: Path) -> None:
    (_told(tmp_path) / "beacons" / "rank-0.beacon").unlink()
    with pytest.raises(SlipwayError, match=r"did not start \(status 3\)"):
        trial._failed(tmp_path, 3)


@pytest.mark.slow
def test_a_slow_rank_decides_how_long_a_step_takes_and_is_waited_for_in_sync(
    make_tiny_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_RANK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = make_tiny_spec(ranks=2)
    found = run_trial(spec, steps=3, warmup=1)
    slept = spec.plan.accumulation * DELAY
    assert len(found.step_seconds) == 3 and min(found.step_seconds) > slept
    assert found.samples_per_second == pytest.approx(8 / found.seconds)
    assert found.breakdown["sync"] > 0.3 * slept, "the mean of a rank that waits and one that does not"
    assert found.peak_bytes > 100 << 20 and not found.failed
    assert not os.path.exists(spec.output)


@pytest.mark.slow
def test_a_rank_that_crashes_is_an_error_with_its_words(make_tiny_spec: MakeSpec, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SlipwayError, match="timing a step failed on rank 0: .*train.ghost_batch must be 2 or more"):
        run_trial(make_tiny_spec(ghost_batch=1), steps=1)
    assert "Traceback" in capfd.readouterr().err

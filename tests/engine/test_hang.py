"""A stuck run is noticed, the rank to blame is named, and a slow one is left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.beacon import FINISHED, READING, SCORING, STARTING, WAITING_FOR_DATA, WRITING, Beacon, Mark, place_of, read
from engine.hang import Diagnosis, Watch, guilty
from engine.hang.report import ABSENT, BLOCKED, DEAD, STOPPED, Report
from engine.hang.watch import LONGEST_LOOK, PATIENT_SECONDS

BOUND = 3.0
HERE = Path(__file__).parent
IN_AUTOGRAD = """Current thread 0x01 (most recent call first):
  File "/x/site-packages/torch/autograd/graph.py", line 1113 in _engine_run_backward
  File "/x/own.py", line 9 in train
"""
IN_ALL_REDUCE = IN_AUTOGRAD.replace("autograd/graph.py", "distributed/distributed_c10d.py")
IN_OWN_CODE = """Current thread 0x01 (most recent call first):
  File "/x/own.py", line 3 in forward
"""
# CUDA: the gradient of an own function runs in a thread of autograd, while the main thread waits for it.
IN_AUTOGRADS_THREAD = IN_OWN_CODE + IN_AUTOGRAD.replace("Current thread", "\nThread")
GRADIENTS, LOSSES, EXTRA = "all-reduce of gradients", "all-reduce of losses", "extra sum"


def report(
    rank: int,
    phase: str = "forward",
    *history: str,
    step: int = 3,
    entered: int | None = None,
    state: str = "running",
    late: bool = True,
    cpu: float = 0.0,
    stack: str = "",
    loaders: tuple[Report, ...] = (),
    loader: int | None = None,
) -> Report:
    """A rank; it is in the last collective of its `history`, if it has one."""
    collective = history[-1] if history else None
    entered = len(history) if entered is None else entered
    mark = Mark(100 + rank, 1, 5, phase, step, ("cat.png", "dog.png"), 2, collective, entered, history)
    return Report(
        rank, mark, state=state, late=late, still_seconds=4.0, cpu=cpu, stack=stack, loaders=loaders, loader=loader
    )


USUAL = (GRADIENTS, LOSSES, GRADIENTS, LOSSES, GRADIENTS)
CASES: dict[str, tuple[tuple[int, ...], Sequence[Report], str]] = {
    "outside while another waits": ((1,), [report(0, "backward", GRADIENTS), report(1)], "rank 1 .*forward.* while rank 0"),
    "outside, but just moved": ((1,), [report(0, "validating", late=False), report(1, "reading")], "rank 1"),
    "all outside at the same place": ((0, 1), [report(0, "reading"), report(1, "reading")], "each of ranks 0, 1"),
    "all outside, one step behind": ((0,), [report(0, step=2), report(1)], "step 2"),
    "backward that is no collective": ((1,), [report(0, "backward", stack=IN_AUTOGRAD), report(1, stack=IN_OWN_CODE)], "own.py"),
    "stopped": ((0,), [report(0, "backward", GRADIENTS, state=STOPPED), report(1)], "stopped.*kill -CONT 100"),
    "dead": ((1,), [report(0, "backward", GRADIENTS), report(1, state=DEAD)], "dead.*memory"),
    "not started": ((1,), [report(0, STARTING, "joining"), Report(1, state=ABSENT)], "rank 1 has not started"),
    "blocked": ((1,), [report(0, "backward", GRADIENTS), report(1, state=BLOCKED)], "network drive"),
    "left": ((0,), [report(0, FINISHED, state=DEAD), report(1, "backward", GRADIENTS)], "rank 0 has left the run"),
    "left after its work": ((1,), [report(0, FINISHED, state=DEAD), report(1, "saving")], "rank 1 .*saving"),
    "does not end": ((0,), [report(0, FINISHED), report(1, FINISHED, state=DEAD)], "its process does not end"),
    "works inside the collective": (
        (1,),
        [report(0, "backward", *USUAL, stack=IN_AUTOGRAD), report(1, "backward", *USUAL, stack=IN_OWN_CODE)],
        "look at /x/own.py:3 in forward",
    ),
    "works in autograd's own thread": (
        (0,),
        [report(0, "backward", *USUAL, stack=IN_AUTOGRADS_THREAD), report(1, "backward", *USUAL, stack=IN_AUTOGRAD)],
        "rank 0",
    ),
    "computes in C++ while the other is idle": (
        (1,),
        [report(0, "backward", *USUAL, stack=IN_AUTOGRAD), report(1, "backward", *USUAL, stack=IN_AUTOGRAD, cpu=1.0)],
        "rank 1",
    ),
    "nobody is missing": (
        (),
        [report(rank, "backward", *USUAL, stack=IN_AUTOGRAD) for rank in (0, 1)],
        "nobody is missing.*network",
    ),
    "has not come out of what the other has left": (
        (0,),
        [report(0, "backward", *USUAL), report(1, "backward", *USUAL, LOSSES)],
        "rank 0 .*collective 5",
    ),
    "skipped one": (
        (1,),
        [report(0, "backward", *USUAL, LOSSES), report(1, "backward", *USUAL, GRADIENTS, step=4)],
        "rank 1 strayed",
    ),
    "took an extra one": (
        (0,),
        [report(0, "backward", *USUAL, LOSSES, EXTRA), report(1, "backward", *USUAL, LOSSES, GRADIENTS, step=4)],
        "rank 0 strayed.*as collective 7, rank 0 went into extra sum, rank 1 went into all-reduce of gradients; look|$",
    ),
    "an extra one taken for another": (
        (0,),
        [report(0, "backward", *USUAL, EXTRA, LOSSES), report(1, "backward", *USUAL, LOSSES, GRADIENTS, step=4)],
        "collective 6",
    ),
    "strayed from the majority": (
        (2,),
        [report(0, "validating", "gather"), report(1, "validating", "gather"), report(2, "backward", GRADIENTS)],
        "rank 2 strayed",
    ),
    "nothing tells who strayed": (
        (0, 1),
        [report(0, "validating", "gather"), report(1, "backward", GRADIENTS)],
        "each of ranks 0, 1 parted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_reports_tell_who_is_to_blame(case: str) -> None:
    ranks, reports, why = CASES[case]
    verdict = guilty(reports)
    assert verdict.ranks == ranks
    assert re.search(why, verdict.why), verdict.why


def test_the_loader_worker_that_reads_is_named_with_its_sample_and_its_line() -> None:
    idle = report(1, "idle", loader=0)
    stuck = report(1, READING, loader=1, stack=IN_OWN_CODE)
    waiting = report(1, WAITING_FOR_DATA, stack=IN_ALL_REDUCE, loaders=(idle, stuck))
    why = guilty([report(0, "backward", GRADIENTS), waiting]).why
    assert "loader worker 1 is running (reading, samples cat.png, dog.png); look at /x/own.py:3 in forward" in why


def test_the_page_says_all_of_every_rank() -> None:
    reports = (report(0, "backward", GRADIENTS, stack=IN_AUTOGRAD), report(1, stack=IN_OWN_CODE), report(2, state=STOPPED))
    text = Diagnosis((1,), "rank 1 sleeps", reports).text()
    assert text.startswith("hang: rank 1 sleeps\n")
    assert "rank 0: step 3, backward, collective 1: all-reduce of gradients, samples cat.png, dog.png" in text
    assert "rank 1 (to blame): step 3, forward" in text
    assert "process 102, stopped, 0% of a core, not moved for 4.0 s\n  no stack: it is stopped" in text
    assert "/x/own.py:9 in train" in text


def test_a_mark_is_read_back_and_a_torn_one_gives_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.beacon"
    beacon = Beacon(path)
    beacon.mark("forward", step=7, keys=[f"sample-{number}" for number in range(100)])
    with beacon.collective(LOSSES):
        mark = read(path)
        assert mark is not None
        assert (mark.pid, mark.step, mark.phase, mark.collective) == (os.getpid(), 7, "forward", LOSSES)
        assert (mark.entered, mark.history, mark.num_keys, mark.keys[0]) == (1, (LOSSES,), 100, "sample-0")
        newest = path.read_bytes().index(b'"collective":"all')
        with path.open("r+b") as file:
            file.seek(newest)
            file.write(b"torn")
        before = read(path)
    assert before is not None
    assert (before.changes, before.collective) == (mark.changes - 1, None)


def test_reading_a_sample_ends_where_it_began(tmp_path: Path) -> None:
    beacon = Beacon(tmp_path / "rank-0.beacon")
    beacon.mark(WAITING_FOR_DATA, step=1, keys=["cat.png", "dog.png"])
    with beacon.reading("cat.png"):
        inside = read(tmp_path / "rank-0.beacon")
    after = read(tmp_path / "rank-0.beacon")
    assert inside is not None
    assert after is not None
    assert (inside.phase, inside.keys) == (READING, ("cat.png",))
    assert (after.phase, after.keys) == (WAITING_FOR_DATA, ("cat.png", "dog.png"))


class Clock:
    """Time that passes when told to, with a look every half second."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def looks(self, watch: Watch, seconds: float) -> list[Diagnosis]:
        found = []
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            found.append(watch.look())
        return [one for one in found if one]


@pytest.fixture
def clock() -> Iterator[Clock]:
    """These tests are ranks and launcher in one, and would be asked for their own stacks."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield Clock()
    signal.signal(signal.SIGUSR1, before)


def test_who_waits_for_a_rank_that_moves_is_no_hang(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, range(2), BOUND, clock=clock)
    slow, fast = (Beacon(place_of(tmp_path, rank).with_suffix(".beacon")) for rank in range(2))
    slow.mark("forward", step=1)
    fast.mark("backward", step=1)
    with fast.collective(GRADIENTS):
        for _ in range(5):
            assert not clock.looks(watch, BOUND - 0.5)
            slow.mark("forward")


def test_a_rank_that_waits_for_data_moves_as_long_as_its_loader_workers_do(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [0], BOUND, clock=clock)
    rank = Beacon(tmp_path / "rank-0.beacon")
    loader = Beacon(tmp_path / "rank-0-loader-0.beacon")
    loader._now["parent"] = os.getpid()
    rank.mark(WAITING_FOR_DATA, step=1)
    for number in range(5):
        with loader.reading(f"sample-{number}"):
            assert not clock.looks(watch, BOUND - 0.5)


def test_a_suspended_run_is_no_hang(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [0], BOUND, clock=clock)
    Beacon(tmp_path / "rank-0.beacon").mark("forward", step=1)
    assert not clock.looks(watch, 0.5)
    clock.now += 3600
    assert watch.look() is None


def test_a_start_has_a_bound_of_its_own_and_a_rank_without_a_word_is_named(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, range(2), BOUND, start_seconds=30, clock=clock)
    beacon = Beacon(tmp_path / "rank-0.beacon")
    (tmp_path / "rank-0.stack").touch()
    with beacon.collective("joining the group"):
        assert not clock.looks(watch, 30)
        clock.now += 1
        found = watch.look()
    assert found is not None
    assert found.guilty == (1,)
    assert "rank 1 has not started" in found.text()


@pytest.mark.parametrize("phase", [SCORING, WRITING])
def test_who_scores_a_split_or_waits_for_a_write_has_a_bound_of_half_an_hour(
    tmp_path: Path, clock: Clock, phase: str
) -> None:
    watch = Watch(tmp_path, [0], BOUND, clock=clock)
    (tmp_path / "rank-0.stack").touch()
    rank = Beacon(tmp_path / "rank-0.beacon")
    rank.mark(phase, step=1)
    for _ in range(int(PATIENT_SECONDS / LONGEST_LOOK)):
        clock.now += LONGEST_LOOK
        assert watch.look() is None
    clock.now += LONGEST_LOOK
    watch.look()
    clock.now += 1
    assert watch.look() is not None


def test_a_run_that_has_ended_is_no_hang(tmp_path: Path, clock: Clock) -> None:
    watch = Watch(tmp_path, [0], BOUND, clock=clock)
    program = (
        f"from pathlib import Path; from engine import beacon; beacon.start(Path({str(tmp_path)!r}), 0); beacon.finish()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=HERE.parents[1])
    assert not clock.looks(watch, 10)


def test_without_signals_a_file_asks_for_the_stacks(tmp_path: Path) -> None:
    program = (
        "import sys, threading; from pathlib import Path; from engine.beacon import answer_requests\n"
        "answer_requests(Path(sys.argv[1]), open(sys.argv[2], 'w'))"
    )
    ask, stack = tmp_path / "rank-0.ask", tmp_path / "rank-0.stack"
    process = subprocess.Popen([sys.executable, "-c", program, ask, stack], cwd=HERE.parents[1])
    ask.touch()
    for _ in range(100):
        if stack.exists() and "in answer_requests" in stack.read_text() and not ask.exists():
            break
        time.sleep(0.1)
    else:
        raise AssertionError("no stack within 10 s")
    process.kill()
    process.wait()


GUILTY: dict[str, tuple[tuple[int, ...], str]] = {
    "reading": (
        (1,),
        "reading, sample sample-6.* while rank 0 waits in all-reduce of gradients.*sleep_for_ever: time.sleep",
    ),
    "reading everywhere": ((0, 1), "reading, sample sample-6.*sleep_for_ever"),
    "loader worker": ((1,), r"loader worker 0 is running \(reading, sample sample-6\).*sleep_for_ever"),
    "loader worker stopped": ((0,), r"loader worker 0 is stopped \(reading, sample sample-6\); go on with: kill -CONT"),
    "forward": ((0,), "step 3, forward, samples sample-6, sample-7.*wait_for_a_lock: lock.acquire"),
    "backward": ((1,), "step 3, backward, .* while rank 0 waits in all-reduce of gradients; .*sleep_for_ever"),
    "backward that computes": ((0,), "backward.*in spin"),
    "optimizer": ((1,), "step 3, optimizer.*sleep_for_ever"),
    "extra collective": ((1,), "rank 1 strayed.*rank 0 went into all-reduce of losses, rank 1 went into extra sum"),
    "skipped collective": (
        (1,),
        "rank 1 strayed.*rank 0 went into all-reduce of losses, rank 1 went into all-reduce of grad",
    ),
    "finished early": ((0,), "rank 0 has finished, but its process does not end"),
    "stopped": ((1,), "rank 1 is stopped.*forward.*kill -CONT"),
    "lock held in C": ((1,), "step 3, forward.*hold_the_lock: libc.sleep"),
    "validation": ((0,), "step 3, validating.*sleep_for_ever"),
    "saving": ((0,), "step 3, saving.*sleep_for_ever"),
    "start": ((1,), "starting.* while rank 0 waits in joining the group.*sleep_for_ever"),
}


class Doctor(threading.Thread):
    """Looks at one planted run as the launcher would, until it has a diagnosis or the run has ended."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(daemon=True)
        self.kind, self.folder = kind, folder / kind.replace(" ", "-")
        self.diagnosis: Diagnosis | None = None
        self.seconds = 0.0
        self.watch = Watch(self.folder, range(2), BOUND, start_seconds=BOUND if kind == "start" else 120)

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while self.kind == "start" and time.monotonic() < deadline and not (self.folder / "stuck").exists():
            time.sleep(0.5)  # the import of torch is not the start that this is about
        while self.diagnosis is None and time.monotonic() < deadline and not self.ended():
            time.sleep(0.5)
            self.diagnosis = self.watch.look()
        if self.diagnosis and (self.folder / "stuck").exists():
            self.seconds = time.time() - (self.folder / "stuck").stat().st_mtime

    def ended(self) -> bool:
        marks = [read(place_of(self.folder, rank).with_suffix(".beacon")) for rank in range(2)]
        return all(mark is not None and mark.phase == FINISHED for mark in marks)


@pytest.fixture(scope="module")
def doctors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Doctor]]:
    """All planted runs side by side, each with its own watch."""
    folder = tmp_path_factory.mktemp("hanging")
    doctors = {kind: Doctor(folder, kind) for kind in [*GUILTY, "slow"]}
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "hanging.py"), str(folder), *doctors]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    for doctor in doctors.values():
        doctor.start()
    yield doctors
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the planted hangs use Linux's signals and fork")
@pytest.mark.parametrize("kind", GUILTY)
def test_the_rank_to_blame_is_named_within_10_seconds_of_the_bound(doctors: dict[str, Doctor], kind: str) -> None:
    doctor = doctors[kind]
    doctor.join()
    assert doctor.diagnosis is not None
    ranks, why = GUILTY[kind]
    first, text = doctor.diagnosis.text().split("\n", 1)
    assert doctor.diagnosis.guilty == ranks, first
    assert re.search(why, first), first
    assert doctor.seconds < BOUND + 10
    silent = {"stopped": 1, "loader worker stopped": 1}.get(kind, 0)
    assert text.count("no stack") == silent, text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the planted hangs use Linux's signals and fork")
def test_a_slow_rank_that_moves_is_left_alone(doctors: dict[str, Doctor]) -> None:
    doctor = doctors["slow"]
    doctor.join()
    assert doctor.diagnosis is None, doctor.diagnosis.text()
    assert doctor.ended()

"""What can go wrong goes wrong here: runs recover to the bits of an undisturbed run, or end with a word on why."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from benchmarks.soak import soak
from contracts.errors import Hung, Interrupted, SlipwayError
from contracts.files import read_json, remove, write_json
from contracts.plan import Plan
from contracts.run import RunResult, RunSpec
from contracts.workload import ROOT, Graph
from engine import worker
from engine.agent import Standby
from engine.beacon import Mark, read
from engine.checkpoint import Checkpoints
from engine.launch import _failure, command, end, environment, errors_in, launch, own_errors
from engine.planning import smaller
from engine.torch_runtime import torch_run
from engine.worker import _cause, _kind
from tests.engine.planted import FAILING_CALL, LARGEST_BATCH, plant
from tests.engine.waiting_ranks import said

MakeSpec = Callable[..., RunSpec]
Train = Callable[..., RunResult]
TOLERANCE = 1e-6
NUM_STEPS = 12
# A checkpoint after every step.
TRAIN = {"global_batch": 16, "epochs": 5, "checkpoint_minutes": 0, "keep_checkpoints": 2 * NUM_STEPS}
PLAN = Plan("ddp", "cpu", 2, 1, 1, 1, 0, 2, "fp32", {})
GONE_SECONDS, PATIENCE_SECONDS = 20.0, 120.0
FAILING_STEP = (FAILING_CALL - 1) // 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kills its processes with Linux's signals"),
]


def checkpoints(spec: RunSpec) -> Checkpoints:
    return Checkpoints(Path(spec.output) / "checkpoints", fingerprint=spec.fingerprint)


def state(spec: RunSpec) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    found = checkpoints(spec).load()
    assert found is not None
    return found[1]


def difference(one: RunSpec, other: RunSpec) -> float:
    """The largest difference between the last weights of two runs."""
    weights, others = state(one)["weights"], state(other)["weights"]
    assert weights.keys() == others.keys()
    return max(float((weights[name].double() - others[name].double()).abs().max()) for name in weights)


def go_back(spec: RunSpec, step: int) -> None:
    """Leave a run as it was after `step` steps."""
    for found in checkpoints(spec).found():
        if found.step > step:
            remove(found.folder)
    assert checkpoints(spec).found()[-1].step == step


def copied(run: RunSpec, spec: RunSpec, *, step: int) -> RunSpec:
    """`spec`, with what `run` had after `step` steps."""
    shutil.copytree(run.output, spec.output)
    go_back(spec, step)
    return spec


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Callable[[MakeSpec], RunSpec]:
    """Two ranks that nothing happens to, with all their checkpoints; trained once."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"

    def trained(make_tiny_spec: MakeSpec) -> RunSpec:
        spec = replace(make_tiny_spec("undisturbed", ranks=2, **TRAIN), output=str(output))
        if not output.exists():
            assert train(spec).steps == NUM_STEPS
        return spec

    return trained


# Stopped and killed from outside


@dataclass
class Story:
    """What became of a run that was stopped, killed and started again, each time some steps later."""

    spec: RunSpec
    statuses: list[int] = field(default_factory=list)
    # Of every stop: the last marks of both ranks, the step of the newest checkpoint, what rank 0 said.
    last_marks: list[list[Mark]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    # Of every end: how many processes there were below what ended; the command lines that outlived it.
    watched: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def start(self, *, workers: int = 0, **variables: str) -> subprocess.Popen[bytes]:
        """A launcher in a process of its own, which leads a process group; its steps take a quarter of a second."""
        output = Path(self.spec.output)
        output.mkdir(parents=True, exist_ok=True)
        replace(self.spec, plan=replace(self.spec.plan, workers=workers)).write(output / "launch.json")
        words = [sys.executable, "-m", "tests.engine.planted", "--launch", str(output / "launch.json")]
        environment = {**os.environ, "PLANTED": "slow", **variables}
        with (output / "log").open("a") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True)

    def ranks(self, launcher: subprocess.Popen[bytes], *, step: int, other_than: Sequence[int] = ()) -> list[int]:
        """The processes of both ranks, once they have come to that step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and launcher.poll() is None:
            marks = self.marks()
            there = [mark.pid for mark in marks if (mark.step or 0) >= step and mark.pid not in other_than]
            if len(there) == 2 and all(map(psutil.pid_exists, there)):
                return there
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached:\n{self.log()}")

    def marks(self) -> list[Mark]:
        """What the ranks said last."""
        found = [read(Path(self.spec.output) / "beacons" / f"rank-{rank}.beacon") for rank in range(2)]
        return [mark for mark in found if mark]

    def stop(self, launcher: subprocess.Popen[bytes], ask: Callable[[], None]) -> None:
        """Ask a run to stop, and note how it did."""
        ask()
        self.statuses.append(launcher.wait(timeout=PATIENCE_SECONDS))
        self.last_marks.append(self.marks())
        self.saved.append(checkpoints(self.spec).found()[-1].step)
        message = Path(self.spec.output) / "interrupted.json"
        self.messages.append(read_json(message)["message"] if message.exists() else "")

    def outlived(self, processes: Sequence[psutil.Process]) -> None:
        """Note which of the processes are still there after GONE_SECONDS."""
        self.watched.append(len(processes))
        self.left += [" ".join(one.cmdline()) for one in psutil.wait_procs(processes, timeout=GONE_SECONDS)[1]]

    def log(self) -> str:
        return (Path(self.spec.output) / "log").read_text(errors="replace")


def standing_by(launcher: subprocess.Popen[bytes], *, other_than: psutil.Process | None = None) -> psutil.Process:
    """The agent that a launcher had loaded ahead."""
    agents = [one for one in psutil.Process(launcher.pid).children() if "engine.agent" in one.cmdline()]
    [standby] = [one for one in agents if one != other_than]
    return standby


def lived(spec: RunSpec, train: Train) -> Story:
    """The agent killed with -9, then SIGTERM; the launcher killed with -9; a rank killed with -9, then Ctrl-C; to the end.

    In the first two starts each rank has a loader too; in the last two an agent stands by.
    """
    story = Story(spec)
    launcher = story.start(workers=1)
    ranks = story.ranks(launcher, step=1)
    agent = psutil.Process(ranks[0]).parent()
    assert agent is not None
    below = agent.children(recursive=True)
    agent.kill()
    story.outlived(below)
    story.ranks(launcher, step=3, other_than=ranks)
    story.stop(launcher, lambda: os.kill(launcher.pid, signal.SIGTERM))

    launcher = story.start(workers=1, STANDBY_AFTER="0")
    story.ranks(launcher, step=story.saved[-1] + 1)
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    story.outlived(below)

    launcher = story.start(STANDBY_AFTER="0")
    ranks = story.ranks(launcher, step=checkpoints(spec).found()[-1].step + 1)
    standby = standing_by(launcher)
    os.kill(ranks[1], signal.SIGKILL)
    ranks = story.ranks(launcher, step=checkpoints(spec).found()[-1].step + 1, other_than=ranks)
    assert [psutil.Process(rank).ppid() for rank in ranks] == [standby.pid] * 2
    assert standing_by(launcher, other_than=standby).is_running()
    below = psutil.Process(launcher.pid).children(recursive=True)
    # In a terminal, Ctrl-C reaches all of the launcher's process group.
    story.stop(launcher, lambda: os.killpg(launcher.pid, signal.SIGINT))
    story.outlived(below)
    assert train(spec).steps == NUM_STEPS
    return story


def test_killed_and_stopped_again_and_again_a_run_ends_with_the_bits_of_an_undisturbed_one_and_leaves_nothing_behind(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    """It goes on by itself where it lost the agent or a rank, and says so; a signal stops all ranks at the same step, which is saved.

    Where an agent stood by, it is the one that starts the ranks anew, and another stands by then.
    """
    story = lived(make_tiny_spec("disturbed", ranks=2, **TRAIN), train)
    assert difference(story.spec, undisturbed(make_tiny_spec)) == 0
    log = story.log()
    assert re.search(r"ranks 0, 1 ended without a word \(status -9\).*: going on .* \(start 1 of 3 more\)", log), log
    assert re.search(r"rank 1 ended without a word .*: going on from the last checkpoint \(start 1 of 3 more\)", log), log
    for status, marks, saved, message in zip(story.statuses, story.last_marks, story.saved, story.messages, strict=True):
        assert status == Interrupted.status == 75
        assert [mark.step for mark in marks] == [saved - 1] * 2
        assert f"stopped at step {saved} of {NUM_STEPS}" in message
    assert len(story.saved) == 2, "by SIGTERM and by SIGINT"
    # Two ranks, two loaders, two resource trackers; with two agents; with two agents, but without loaders.
    assert story.watched == [6, 8, 4]
    assert story.left == []


def test_for_an_agent_that_stood_by_and_died_there_is_none() -> None:
    line, variables = command(PLAN, Path("spec.json")), environment(PLAN)
    with Standby() as standby:
        assert standby.take(line, variables) is None
        standby.begin(variables)
        assert standby.process is not None
        standby.process.kill()
        standby.process.wait()
        assert standby.take(line, variables) is None
        standby.begin(variables)
        assert (last := standby.process) is not None
        assert last.poll() is None
    assert last.returncode == -signal.SIGKILL


def test_an_agent_that_stood_by_ends_with_its_ranks() -> None:
    """By word of the launcher, whose number it does not carry."""
    variables = environment(PLAN)
    with Standby() as standby:
        standby.begin(variables)
        agent = standby.take(command(PLAN, Path("spec.json")), variables)
        assert agent is not None
        end(agent)
        assert agent.returncode == -signal.SIGKILL


def test_a_run_that_loses_a_rank_in_every_start_gives_up(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, "die")
    with pytest.raises(SlipwayError, match=r"rank 0 ended without a word \(status -9\).*, 3 times"):
        launch(make_tiny_spec(layout={"restarts": 2}))
    assert capsys.readouterr().out.count("going on from the last checkpoint") == 2


def test_a_rank_whose_loader_process_is_killed_goes_on_from_the_last_checkpoint(
    make_tiny_spec: MakeSpec, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, "lost_loader")
    spec = make_tiny_spec(micro_batch=8, **TRAIN)
    spec = replace(spec, plan=replace(spec.plan, workers=1))
    assert launch(spec).resumed_from > 0
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE
    said = r"rank 0 lost a loader process \(DataLoader worker .*\): going on from the last checkpoint \(start 1 of 3 more\)"
    assert re.search(said, capfd.readouterr().out)


def test_a_connection_that_broke_with_a_loader_process_is_told_as_its_loss() -> None:
    def tell(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGCHLD, tell)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGCHLD)).start()
        assert _kind(_cause(ConnectionResetError())) == "LostLoader"
        os.kill(os.getpid(), signal.SIGCHLD)  # what comes later disturbs nobody
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_loss_that_is_told_while_an_error_is_dealt_with_is_written_down(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")

    def told_first(error: BaseException) -> BaseException:
        monkeypatch.setattr(worker, "_cause", _cause)
        os.kill(os.getpid(), signal.SIGCHLD)
        return error

    def fail(spec: RunSpec) -> None:
        monkeypatch.setattr(worker, "_cause", told_first)
        raise ConnectionResetError

    spec = make_tiny_spec()
    spec.write(Path(spec.output) / "spec.json")
    monkeypatch.setattr(worker, "end_with_parents", lambda: None)
    before = signal.signal(signal.SIGCHLD, tell)
    try:
        assert worker.run_rank(str(Path(spec.output) / "spec.json"), fail) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [error["kind"] for error in errors_in(Path(spec.output))] == ["LostLoader"]


def test_a_loader_process_that_linux_killed_for_want_of_memory_is_reason_for_smaller_micro_batches(
    make_tiny_spec: MakeSpec,
) -> None:
    spec = make_tiny_spec()
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    gone = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    assert [_kind(error) for error in (killed, gone, RuntimeError("DataLoader"))] == ["LostLoader"] * 2 + ["RuntimeError"]
    error = {"rank": 0, "kind": _kind(killed), "message": str(killed), "time": 0.0}
    write_json(Path(spec.output) / "error-0.json", error)
    ended = [_failure(spec, Path(spec.output), 1, starved=starved) for starved in (True, False)]
    assert [one.cause for one in ended] == ["OutOfMemory", "lost"]
    assert ended[0].story == "memory ran out, and the system killed a loader process of rank 0"


def test_a_rank_that_fails_with_an_error_is_not_started_again(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, "error")
    with pytest.raises(SlipwayError, match="training failed on rank 1: LookupError: the row is gone"):
        launch(make_tiny_spec(ranks=2, **TRAIN))
    assert "going on" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["gradient_is_no_number", "gradient_too_large"])
def test_a_step_that_deepspeed_leaves_out_ends_the_run(make_tiny_spec: MakeSpec, train: Train, fault: str) -> None:
    """Its status would be 0 otherwise, and nothing learnt."""
    spec = make_tiny_spec(fault, backend="deepspeed", micro_batch=8, **TRAIN)
    with pytest.raises(AssertionError, match=rf"the norm of its gradient is inf, in step {FAILING_STEP} \(loss"):
        train(spec, planted=fault)
    assert checkpoints(spec).found()[-1].step == FAILING_STEP


@pytest.mark.timeout(600)
def test_trainings_killed_at_random_moments_end_with_the_hash_of_one_that_was_not(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "slow")
    spec = make_tiny_spec("soak", ranks=2, micro_batch=4, epochs=3, checkpoint_minutes=0)
    trainings = soak(spec, kills=5, most=5, seed=56, launcher="tests.engine.planted")
    assert len({one.digest for one in trainings}) == 1
    assert sum(len(one.kills) for one in trainings) == 5


# As on GPUs


@pytest.mark.parametrize(("backend", "compress_gradients"), [("ddp", False), ("ddp", True), ("accelerate", False)])
def test_gradients_that_meet_in_the_backward_teach_the_same_bits_as_after_it(
    make_tiny_spec: MakeSpec, train: Train, backend: str, compress_gradients: bool
) -> None:
    """Of two ranks, whose sums have one order: a GPU's gradients meet after the backward in the first steps of a start, then in it."""
    layout = {"compress_gradients": compress_gradients}
    how = {"backend": backend, "layout": layout, **TRAIN, "clip_norm": 0.05}  # every step is clipped
    inside, after = (make_tiny_spec(name, ranks=2, **how) for name in ("inside", "after"))
    train(inside, planted="reducer")
    train(after)
    met = [read(Path(spec.output) / "beacons" / "rank-1.beacon") for spec in (inside, after)]
    assert [mark is not None and "exchange in the backward" in mark.history for mark in met] == [True, False]
    assert difference(inside, after) == 0


def test_gradients_meet_in_the_backward_after_the_first_steps(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = make_tiny_spec(ranks=2, **TRAIN)
    train(spec, planted="late_reducer")
    met = read(Path(spec.output) / "beacons" / "rank-1.beacon")
    assert met is not None and "exchange in the backward" in met.history
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE
    assert "got no gradient" not in said(spec)


def test_where_a_parameter_gets_no_gradient_they_go_on_meeting_after_it(make_tiny_spec: MakeSpec, train: Train) -> None:
    plain, spec = make_tiny_spec("plain", ranks=2, **TRAIN), make_tiny_spec(ranks=2, **TRAIN)
    train(plain, planted="idle")
    train(spec, planted="idle_reducer")
    assert difference(spec, plain) == 0
    assert (
        said(spec).count("a trainable parameter got no gradient from a batch of step 0: gradients go on meeting after") == 1
    )
    assert "got no gradient" not in said(plain)


def test_a_parameter_that_is_left_out_too_late_for_that_is_told_with_the_way_out(
    make_tiny_spec: MakeSpec, train: Train
) -> None:
    with pytest.raises(AssertionError, match="got no gradient from a batch, after .* every one take part in every loss"):
        train(make_tiny_spec(backend="ddp", **TRAIN), planted="late_idle")


# Memory


def test_where_memory_runs_out_on_one_rank_all_go_on_with_half_the_micro_batch(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = make_tiny_spec(ranks=2, micro_batch=2 * LARGEST_BATCH, **TRAIN)
    assert train(spec, planted="memory").extra["micro_batch"] == LARGEST_BATCH
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE
    assert f"memory ran out in step {FAILING_STEP}: going on with micro-batches of 2 instead of 4" in said(spec)


@pytest.mark.parametrize("backend", ["fsdp", "deepspeed"])
def test_where_ranks_cannot_agree_on_it_they_end_and_go_on_from_the_last_checkpoint(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train, backend: str
) -> None:
    spec = make_tiny_spec(ranks=2, backend=backend, micro_batch=2 * LARGEST_BATCH, **TRAIN)
    with pytest.raises(AssertionError, match=f"memory ran out in step {FAILING_STEP}: planted"):
        train(spec, planted="memory")
    assert [one["kind"] for one in own_errors(errors_in(Path(spec.output)))] == ["OutOfMemory"]
    assert _failure(spec, Path(spec.output), 1, starved=False).cause == "OutOfMemory"
    plan = smaller(spec.plan, ghost_batch=2)  # as the launcher does then
    assert plan is not None
    result = train(replace(spec, plan=plan), planted="memory")
    assert (result.resumed_from, result.extra["micro_batch"]) == (FAILING_STEP, LARGEST_BATCH)
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE


def test_under_accelerate_too_memory_that_runs_out_on_one_rank_halves_the_micro_batches_of_all(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = make_tiny_spec("accelerate", ranks=2, backend="accelerate", micro_batch=2 * LARGEST_BATCH, **TRAIN)
    result = train(spec, planted="memory")
    assert (result.resumed_from, result.extra["micro_batch"]) == (0, LARGEST_BATCH)
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE


def test_memory_may_run_out_in_the_first_step_and_while_reading_ahead(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = make_tiny_spec(ranks=2, micro_batch=4 * LARGEST_BATCH, **TRAIN)
    assert train(spec, planted="early_memory").extra["micro_batch"] == LARGEST_BATCH
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE
    assert "memory ran out in step 0: going on with micro-batches of 4 instead of 8" in said(spec)
    assert re.search(r"memory ran out in step [1-9]\d*: going on with micro-batches of 2 instead of 4", said(spec))


@pytest.mark.parametrize(
    ("fault", "words", "cause"),
    [
        ("optimizer_memory", f"memory ran out in the optimizer of step {FAILING_STEP}: planted", "OutOfMemory"),
        ("saving_memory", f"memory ran out in the saving of step {FAILING_STEP + 1}: planted", "OutOfMemory"),
        (
            "validation_memory",
            r"memory ran out in the validation after step \d, of as few records .*: planted",
            "SlipwayError",
        ),
    ],
)
def test_outside_of_micro_batches_memory_runs_out_to_a_new_start_where_smaller_ones_can_help(
    make_tiny_spec: MakeSpec, train: Train, fault: str, words: str, cause: str
) -> None:
    spec = make_tiny_spec(fault, micro_batch=8, **TRAIN)
    with pytest.raises(AssertionError, match=words):
        train(spec, planted=fault)
    assert _failure(spec, Path(spec.output), 1, starved=False).cause == cause


@pytest.fixture
def starved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that kills rank 1 for want of memory, and counts it."""
    counts = tmp_path / "vmstat"
    counts.write_text("pgfault 1\noom_kill 7\n")
    monkeypatch.setattr("engine.launch.KERNEL_COUNTS", counts)
    monkeypatch.setenv("KERNEL_COUNTS", str(counts))
    plant(monkeypatch, "starved")


def test_a_rank_that_the_system_killed_for_want_of_memory_goes_on_with_smaller_micro_batches(
    make_tiny_spec: MakeSpec,
    undisturbed: Any,
    starved: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The agent that stood by while the larger ones were tried starts them."""
    monkeypatch.setattr("engine.launch.STANDBY_AFTER", 0.0)
    taken: list[Any] = []
    take = Standby.take
    monkeypatch.setattr(Standby, "take", lambda *words: taken.append(take(*words)) or taken[-1])
    spec = make_tiny_spec(ranks=2, micro_batch=2 * LARGEST_BATCH, **TRAIN)
    assert launch(spec).steps == NUM_STEPS
    assert difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE
    said = capfd.readouterr().out
    assert "the system killed rank 1: going on from the last checkpoint with micro-batches of 2" in said
    assert [agent is not None for agent in taken] == [False, True]
    assert taken[1].returncode == 0


def test_where_micro_batches_cannot_be_smaller_the_end_says_what_can(make_tiny_spec: MakeSpec, starved: None) -> None:
    spec = make_tiny_spec(ranks=2, micro_batch=2 * LARGEST_BATCH, **{**TRAIN, "ghost_batch": 2 * LARGEST_BATCH})
    with pytest.raises(SlipwayError, match=r"the system killed rank 1, with a single ghost batch of 4 .*: lower"):
        launch(spec)


def test_a_run_that_was_asked_to_stop_is_not_started_again_for_want_of_memory(
    make_tiny_spec: MakeSpec, starved: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, "starved_while_asked")
    with pytest.raises(Interrupted, match="stopped before it could save"):
        launch(make_tiny_spec(ranks=2, micro_batch=2 * LARGEST_BATCH, **TRAIN))
    assert "going on from the last checkpoint" not in capfd.readouterr().out


def test_where_memory_runs_out_in_evaluation_a_graph_is_computed_in_halves() -> None:
    calls: list[int] = []

    class Doubling(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            calls.append(len(values))
            if len(values) > 2:
                raise torch.OutOfMemoryError("planted: no room")
            return 2 * values

    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    graph = Graph(Doubling(), {"values": values[:1]}, ["twice"], dynamic={"values": {0: "batch"}})
    assert np.array_equal(torch_run({"graph": graph}, "cpu")("graph", values=values)["twice"], 2 * values)
    assert calls == [5, 2, 3, 1, 2]


# Hangs, damage, other sizes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang", r"reading, sample record \d+, epoch 1"),
        ("late_hang", r"step 3, optimizer, samples row-\d+, row-\d+"),
    ],
)
def test_a_rank_that_is_stuck_is_named_and_the_run_ended(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    plant(monkeypatch, fault)
    with pytest.raises(Hung, match=rf"hang: rank 1 .*{words}.*planted.py.*time.sleep") as hung:
        launch(make_tiny_spec(ranks=2, layout={"hang_seconds": 3}, **TRAIN))
    assert hung.value.status == 76
    assert not [one for one in psutil.Process().children(recursive=True) if "tests.engine.planted" in one.cmdline()]


def test_with_the_newest_checkpoints_damaged_a_run_goes_on_from_the_one_before_to_the_same_bits(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = copied(undisturbed(make_tiny_spec), make_tiny_spec("damaged", ranks=2, **TRAIN), step=7)
    *_, flipped, truncated = (found.folder / "state.pt" for found in checkpoints(spec).found())
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    os.truncate(truncated, truncated.stat().st_size // 2)
    train(spec)
    assert said(spec).count("does not have the sha256 of its manifest; trying the one before") >= 2
    assert f"going on from step 5 of {NUM_STEPS}" in said(spec)
    assert difference(spec, undisturbed(make_tiny_spec)) == 0


def test_two_ranks_then_one_then_two_with_other_micro_batches_learn_the_same(
    make_tiny_spec: MakeSpec, undisturbed: Any, train: Train
) -> None:
    spec = copied(undisturbed(make_tiny_spec), make_tiny_spec("resized", micro_batch=8, **TRAIN), step=3)
    train(spec)
    go_back(spec, 7)
    train(make_tiny_spec("resized", ranks=2, micro_batch=4, **TRAIN))
    assert 0 < difference(spec, undisturbed(make_tiny_spec)) < TOLERANCE

"""Starts the ranks of a run, passes on what they say, and turns their end into a result or an error.

A run that lost a rank goes on from its last checkpoint; one whose memory ran out goes on with smaller micro-batches; one
that stands still is ended, and the guilty rank named.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from contracts.errors import Hung, Interrupted, SlipwayError
from contracts.files import read_json
from contracts.plan import Plan
from contracts.run import RunResult, RunSpec
from contracts.workload import ROOT
from engine.agent import Standby
from engine.hang import Watch
from engine.planning import has_libuv, process_group_environment, smaller, torchrun
from engine.sinks import Follower, sinks_for

POLL_SECONDS, LOOK_SECONDS = 0.1, 0.5
# A rank that is killed leaves the others this long to say so themselves.
GRACE_SECONDS = 5.0
# So long after its start a run has an agent loaded for the next one: shorter runs do not pay for it.
STANDBY_AFTER = 20.0
ALONE = ("single", "dp")
# glibc hands every larger block that is freed back to the system, and the next step pays for thousands of fresh pages: a tenth of
# a step's time on a CPU. 32 MiB is the highest threshold that it takes; other systems ignore both.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
LOG = "log.txt"
# Where Linux counts, among other things, the processes that it killed for want of memory.
KERNEL_COUNTS = Path("/proc/vmstat")


def launch(spec: RunSpec) -> RunResult:
    """Train as `spec` says, in processes of their own, and give what they report.

    Raises:
        Interrupted: when the run was asked to stop; it is saved, and the same call goes on.
        Hung: when a rank stood still for longer than the plan allows; the text says which, where and what the others did.
        SlipwayError: with the first rank's own words when training failed.
    """
    output = Path(spec.output)
    output.mkdir(parents=True, exist_ok=True)
    name = f"{spec.workload}-{output.name}"
    with Follower(output / "metrics.jsonl", sinks_for(name, spec.settings, output)), Standby() as standby:
        return _launch(spec, output, standby)


def _launch(spec: RunSpec, output: Path, standby: Standby) -> RunResult:
    losses = 0
    while True:
        ended = _run(spec, output, standby, last=losses == spec.plan.restarts)
        if ended.result is not None:
            return ended.result
        cause = ended.cause
        if cause == "interrupted":
            raise Interrupted(
                "training was interrupted; what it had learnt is saved, and the same command goes on from there"
            )
        if cause == "stopped":
            raise Interrupted("training was stopped before it could save; the same command goes on from the last checkpoint")
        if cause == "OutOfMemory":
            spec = replace(spec, plan=_smaller(spec, ended.story))
            print(
                f"{ended.story}: going on from the last checkpoint with micro-batches of {spec.plan.micro_batch}", flush=True
            )
            continue
        if cause != "lost" or losses == spec.plan.restarts:
            again = f", {losses + 1} times" if cause == "lost" and losses else ""
            raise SlipwayError(ended.story + again)
        losses += 1
        print(f"{ended.story}: going on from the last checkpoint (start {losses} of {spec.plan.restarts} more)", flush=True)


def _smaller(spec: RunSpec, story: str) -> Plan:
    """The plan with smaller micro-batches.

    Raises:
        SlipwayError: when there are none.
    """
    ghost_batch = spec.settings["train"]["ghost_batch"]
    plan = smaller(spec.plan, ghost_batch=ghost_batch)
    if plan is None:
        raise SlipwayError(
            f"{story}, with a single ghost batch of {ghost_batch} samples a rank: lower train.ghost_batch or plan.ranks, or make the samples"
            f" smaller{'' if spec.plan.activation_checkpointing else ', or set plan.activation_checkpointing'}"
        )
    return plan


@dataclass(frozen=True)
class _End:
    """How a start of the ranks ended: with a result, or for a cause ("interrupted", "stopped", "lost", or an error's kind) with its story."""

    result: RunResult | None = None
    cause: str = ""
    story: str = ""


def _run(spec: RunSpec, output: Path, standby: Standby, *, last: bool) -> _End:
    """One start of the ranks. After the `last` one there is none for which an agent should stand by."""
    for stale in (*output.glob("error-*.json"), output / "result.json", output / "interrupted.json"):
        stale.unlink(missing_ok=True)
    spec.write(output / "spec.json")
    watch, starved_before = Watch(output / "beacons", range(spec.plan.ranks), spec.plan.longest_silence), _num_starved()
    line, variables = command(spec.plan, output / "spec.json"), environment(spec.plan)
    # In a session of its own: Ctrl-C is for the launcher, which tells the ranks.
    process = standby.take(line, variables) or subprocess.Popen(line, env=variables, start_new_session=True)
    prepare = None if last or spec.plan.backend in ALONE else partial(standby.begin, variables)
    asked: list[int] = []
    with _signals(_passing_on(process, spec.plan, asked)):
        try:
            status = wait(process, watch, prepare)
        finally:
            end(process)
    if (output / "result.json").exists():
        return _End(RunResult.read(output / "result.json"))
    if (output / "interrupted.json").exists():
        return _End(cause="interrupted")
    # Who asked for a stop wants none of the starts that follow from want of memory.
    failure = _failure(spec, output, status, starved=not asked and _num_starved() > starved_before)
    return _End(cause="stopped") if asked and failure.cause in ("lost", "never started") else failure


def wait(process: subprocess.Popen[bytes], watch: Watch, prepare: Callable[[], None] | None = None) -> int:
    """The exit status of the ranks. Where one is lost, the others are ended a little later: the agent would wait for half a minute.

    `prepare` is done at every look from STANDBY_AFTER on.

    Raises:
        Hung: when one of them stands still.
    """
    began = looked = time.monotonic()
    lost = None
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            if diagnosis := watch.look():
                raise Hung(diagnosis.text())
            lost = (lost or looked) if watch.lost else None
            if lost and looked - lost > GRACE_SECONDS:
                end(process)
            if prepare and looked - began > STANDBY_AFTER:
                prepare()
    return process.returncode


@contextlib.contextmanager
def ranks(
    spec: RunSpec, module: str, *words: str, silence: float | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Watch]]:
    """The ranks of a run, each of which is `module`, inside; they end with the block. What they say goes to LOG in `spec.output`.

    `silence` is how many seconds they may stand still, where it is not for the plan to say.
    """
    output = Path(spec.output)
    spec.write(output / "spec.json")
    watch = Watch(output / "beacons", range(spec.plan.ranks), silence or spec.plan.longest_silence)
    line, variables = [*command(spec.plan, output / "spec.json", module=module), *words], environment(spec.plan)
    with (output / LOG).open("wb") as log:
        process = subprocess.Popen(line, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process, watch
    finally:
        end(process)


def errors_in(output: Path) -> list[dict[str, Any]]:
    """What ranks said of their end, the first to fail first."""
    return sorted((read_json(path) for path in output.glob("error-*.json")), key=lambda error: error["time"])


def own_errors(errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not merely the loss of another rank."""
    return [error for error in errors if error["kind"] != "LostRank"]


def command(plan: Plan, spec: Path, *, module: str = "engine.worker") -> list[str]:
    """The command line that runs every rank of a plan on this machine."""
    worker = ["-m", module, str(spec)]
    if plan.backend in ALONE:
        return [sys.executable, *worker]
    return [sys.executable, *torchrun(plan.ranks, spec.parent, libuv=has_libuv()), *worker]


def environment(plan: Plan) -> dict[str, str]:
    """The environment of the ranks: the plan's threads, this project's code, memory that is kept, and who to end with."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **KEPT_MEMORY,
        **os.environ,
        "OMP_NUM_THREADS": str(plan.threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "SLIPWAY_LAUNCHER": str(os.getpid()),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **process_group_environment(libuv=has_libuv()),
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """Let nothing of a start live on: the ranks and their loaders die with the process that was started."""
    process.kill()  # an agent that stood by does not carry our number
    left = [one for one in psutil.process_iter() if _is_ours(one)]
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(left, timeout=GRACE_SECONDS)


def _is_ours(process: psutil.Process) -> bool:
    """Whether this launcher started it, directly or not: it carries our number, also when the agent in between is gone."""
    try:
        return process.environ().get("SLIPWAY_LAUNCHER") == str(os.getpid())
    except psutil.Error:
        return False


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Any:
    """SIGTERM and SIGINT go to `handler` inside."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _passing_on(process: subprocess.Popen[bytes], plan: Plan, asked: list[int]) -> Callable[[int, FrameType | None], None]:
    """A signal handler that tells the ranks, which agree on a step, save and end; `asked` collects the signals.

    The agent is passed over: told to stop, it would kill ranks that take longer than its timeout, and at a second signal end
    before them.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid)
            for one in [started] if plan.backend in ALONE else started.children() or [started]:
                one.send_signal(signal.SIGTERM)

    return handle


def _num_starved() -> int:
    """How many processes the system has killed so far because its memory ran out; 0 where it does not say."""
    counts = KERNEL_COUNTS.read_text().splitlines() if KERNEL_COUNTS.exists() else []
    return next((int(line.split()[1]) for line in counts if line.startswith("oom_kill ")), 0)


def _failure(spec: RunSpec, output: Path, status: int, *, starved: bool) -> _End:
    """Why there is no result, in the words of the rank that failed first.

    `starved`: the system has killed something for want of memory meanwhile.
    """
    errors = errors_in(output)
    own = own_errors(errors)
    if own and own[0]["kind"] == "LostLoader":
        return _lost_loader(own[0], starved=starved)
    if own:
        first = own[0]
        known = first["kind"] in ("SlipwayError", "OutOfMemory")
        what = first["message"] if known else f"{first['kind']}: {first['message']}"
        return _End(cause=first["kind"], story=f"training failed on rank {first['rank']}: {what}")
    silent = sorted(set(range(spec.plan.ranks)) - {error["rank"] for error in errors})
    names = (
        "the ranks" if not silent else f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
    )
    if starved:
        return _End(cause="OutOfMemory", story=f"memory ran out, and the system killed {names}")
    story = f"{names} ended without a word (status {status}): killed, perhaps for want of memory"
    started = any((output / "beacons").glob("rank-*.beacon"))
    return _End(cause="lost" if started else "never started", story=story)


def _lost_loader(error: dict[str, Any], *, starved: bool) -> _End:
    """A rank without one of its loader processes is as good as lost."""
    rank = error["rank"]
    if starved:
        return _End(cause="OutOfMemory", story=f"memory ran out, and the system killed a loader process of rank {rank}")
    return _End(cause="lost", story=f"rank {rank} lost a loader process ({error['message'].strip().rstrip('.')})")

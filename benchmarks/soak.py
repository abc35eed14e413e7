"""Kills trainings with -9 at random moments, lets them go on to their end, and compares what they have learnt.

    python -m benchmarks.soak --kills 50 --backend ddp

Every training is killed once, or up to `--most` times: a rank, torchrun's agent or the launcher, as the seed says, one time in four while
it starts, otherwise somewhere in one of its steps. A training whose launcher was killed, or had to give up, is
started again with the same command. In the end its weights, their average and the optimiser's state must have the hash of a
training that nobody disturbed, and no process of it may be left. The exit status is 1 where that is not so.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil

from contracts.errors import SlipwayError
from contracts.run import RunSpec
from contracts.workload import ROOT
from engine.agent import TORCHRUN
from engine.beacon import Mark, read

POLL_SECONDS, LOOK_SECONDS, STEP_SECONDS, EXIT_SECONDS, RUN_SECONDS = 0.02, 0.2, 0.1, 20.0, 600.0
NEVER_GIVE_UP = 1000
Found = TypeVar("Found")
IN_THE_START = 0.25  # the share of kills that come before the first step


@dataclass(frozen=True)
class Kill:
    """Who was killed, and what rank 0 was doing."""

    victim: str
    doing: str

    def __str__(self) -> str:
        return f"{self.victim} ({self.doing})"


@dataclass
class Training:
    """One training from its first start to its end; `launcher` is the module that takes `--launch SPEC.json`."""

    spec: RunSpec
    launcher: str = "benchmarks.soak"
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    num_steps: int = 0
    digest: str = ""
    seen: set[psutil.Process] = field(default_factory=set)

    def start(self) -> psutil.Popen:
        """Launch it, or launch it again; what it prints goes to launcher.log of its folder."""
        output = Path(self.spec.output)
        output.mkdir(parents=True, exist_ok=True)
        self.spec.write(output / "launch.json")
        self.starts += 1
        words = [sys.executable, "-m", self.launcher, "--launch", str(output / "launch.json")]
        with (output / "launcher.log").open("a") as log:
            return psutil.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

    def processes(self, launcher: psutil.Popen) -> dict[str, psutil.Process]:
        """The launcher, the agent, the one that stands by and the ranks that are there now, by name; loader workers are remembered
        too."""
        names: dict[str, psutil.Process] = {"launcher": launcher}
        try:
            below = launcher.children(recursive=True)
            self.seen |= set(below)
            for one in below:
                words, parent = one.cmdline(), one.ppid()
                if {TORCHRUN, "engine.agent"} & set(words) and parent == launcher.pid:
                    names["agent" if TORCHRUN in words or one.children() else "standby"] = one
                elif "engine.worker" in words:
                    names[f"rank {one.environ().get('RANK', '0')}"] = one
        except psutil.Error:
            pass
        return names

    def kill(self, launcher: psutil.Popen, draw: random.Random) -> str | None:
        """Kill one of its processes, each as likely as the other; gives its name, None where the training has ended."""
        there = self.processes(launcher)
        if launcher.poll() is not None:
            return None
        victim = draw.choice(sorted(there))
        mark = self.mark()
        doing = "before its first word" if mark is None else mark.phase + (f", step {mark.step}" if mark.step else "")
        try:
            there[victim].kill()
        except psutil.NoSuchProcess:
            return None
        self.kills.append(Kill(victim, doing))
        return victim

    def mark(self) -> Mark | None:
        """What rank 0 of the present start said last."""
        mark = read(Path(self.spec.output) / "beacons" / "rank-0.beacon")
        return mark if mark and psutil.pid_exists(mark.pid) else None

    def wait_for(self, so: Callable[[Mark], bool]) -> Mark:
        """What rank 0 says as soon as it is `so`; raises as `wait_until`."""
        return self.wait_until(lambda: mark if (mark := self.mark()) and so(mark) else None)

    def wait_until(self, found: Callable[[], Found | None], *, every: float = 0.01) -> Found:
        """What `found` gives as soon as it is something; it is asked `every` so many seconds.

        Raises:
            SlipwayError: when that takes longer than RUN_SECONDS.
        """
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            if there := found():
                return there
            time.sleep(every)
        raise SlipwayError(f"{self.spec.output} did not come so far; it printed:\n{self.log()}")

    def has_come_to(self, step: int) -> bool:
        """Whether the present start has come to that step."""
        mark = self.mark()
        return mark is not None and mark.step is not None and mark.step >= step

    def alive(self, seconds: float = EXIT_SECONDS) -> list[psutil.Process]:
        """The processes it ever had that are still there after so many seconds."""
        return psutil.wait_procs(self.seen, timeout=seconds)[1]

    def log(self) -> str:
        return (Path(self.spec.output) / "launcher.log").read_text(errors="replace")


def soak(
    reference: RunSpec,
    *,
    kills: int,
    most: int,
    seed: int,
    launcher: str = "benchmarks.soak",
    told: Callable[[str], None] = print,
) -> list[Training]:
    """Kill trainings like `reference` until `kills` kills have met one; gives all of them, the undisturbed one first.

    Raises:
        SlipwayError: when one ends otherwise than the undisturbed one, or leaves processes behind.
    """
    draw = random.Random(seed)
    whole = undisturbed(Training(reference, launcher))
    told(f"undisturbed: {whole.seconds:.1f} s, hash {whole.digest}")
    trainings, met = [whole], 0
    while met < kills:
        output = Path(reference.output).with_name(f"{Path(reference.output).name}-{len(trainings)}")
        spec = replace(reference, output=str(output), plan=replace(reference.plan, restarts=NEVER_GIVE_UP))
        training = disturbed(Training(spec, launcher), draw, kills=min(kills - met, draw.randint(1, most)), like=whole)
        trainings.append(training)
        met += len(training.kills)
        same = "the same hash" if training.digest == whole.digest else f"ANOTHER HASH {training.digest}"
        what = "; ".join(map(str, training.kills)) or "it ended before"
        told(
            f"training {len(trainings) - 1}: {same} after {training.starts} starts, {training.seconds:.1f} s; killed: {what}"
        )
        if training.digest != whole.digest:
            raise SlipwayError(f"{spec.output} has learnt something else; it printed:\n{training.log()}")
    return trainings


def undisturbed(training: Training) -> Training:
    """The training when nobody kills it."""
    started = time.monotonic()
    launcher = training.start()
    _sleep(RUN_SECONDS, training, launcher, until=lambda: training.has_come_to(0))
    training.start_seconds = time.monotonic() - started
    _end(training, launcher, started)
    mark = read(Path(training.spec.output) / "beacons" / "rank-0.beacon")
    training.num_steps = 1 + (mark.step or 0) if mark else 1
    return training


def disturbed(training: Training, draw: random.Random, *, kills: int, like: Training) -> Training:
    """The training when it is killed up to `kills` times; `like` tells how long its start and its steps take."""
    started = time.monotonic()
    launcher = training.start()
    for _ in range(kills):
        if draw.random() < IN_THE_START:
            seconds = draw.uniform(0, like.start_seconds)
        else:
            step, seconds = draw.randrange(like.num_steps), draw.uniform(0, STEP_SECONDS)
            _sleep(RUN_SECONDS, training, launcher, until=functools.partial(training.has_come_to, step))
        if _sleep(seconds, training, launcher) and training.kill(launcher, draw) == "launcher":
            launcher.wait()
            launcher = training.start()
    _end(training, launcher, started)
    return training


def _sleep(seconds: float, training: Training, launcher: psutil.Popen, *, until: Callable[[], bool] = lambda: False) -> bool:
    """Wait for so many seconds or `until` it is so, looking at the processes now and then, which takes a third of a core if done
    in every turn; false where the training has ended."""
    looked = time.monotonic()
    deadline = looked + seconds
    while time.monotonic() < deadline and launcher.poll() is None and not until():
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            training.processes(launcher)
        time.sleep(POLL_SECONDS)
    return launcher.poll() is None


def _end(training: Training, launcher: psutil.Popen, started: float) -> None:
    """Wait for the end, starting again what could not go on by itself; note the time, the hash and what is left."""
    while status := _wait(training, launcher):
        if training.starts > 3 * (1 + len(training.kills)):
            raise SlipwayError(f"{training.spec.output} ends with {status} again and again; it printed:\n{training.log()}")
        launcher = training.start()
    training.seconds = time.monotonic() - started
    training.digest = digest(training.spec)
    if left := training.alive():
        raise SlipwayError(f"{training.spec.output} has left processes behind: {[one.cmdline() for one in left]}")


def _wait(training: Training, launcher: psutil.Popen) -> int:
    if _sleep(RUN_SECONDS, training, launcher):
        raise SlipwayError(
            f"{training.spec.output} goes on for more than {RUN_SECONDS:.0f} s; it printed:\n{training.log()}"
        )
    return launcher.wait()


def digest(spec: RunSpec) -> str:
    """The hash of every tensor in the newest checkpoint of a run, and of its best weights."""
    from engine.checkpoint import Checkpoints

    found = Checkpoints(Path(spec.output) / "checkpoints", fingerprint=spec.fingerprint).load()
    if found is None:
        raise SlipwayError(f"{spec.output} has no checkpoint")
    total = hashlib.blake2b(digest_size=16)
    for name, value in sorted(_tensors("", found[1])):
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    total.update((Path(spec.output) / "best.safetensors").read_bytes())
    return total.hexdigest()


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(value, "numpy"):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}/{key}", item)


def launch_as_told(spec: Path) -> int:
    """Launch a run in this process; gives the exit status that the stage `train` would have."""
    from engine.launch import launch

    try:
        launch(RunSpec.read(spec))
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--most", type=int, default=1, help="kills of one training")
    parser.add_argument("--backend", default="ddp")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--workers", type=int, default=0, help="loader processes a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)  # a launcher, in a process of its own
    options = parser.parse_args()
    if options.launch:
        return launch_as_told(options.launch)
    from benchmarks.embedded import cpu_plan, prepare, tiny_settings

    settings = tiny_settings(epochs=options.epochs, checkpoint_minutes=0)
    ranks = 1 if options.backend == "single" else 2
    plan = replace(cpu_plan(options.backend, ranks=ranks, micro_batch=2, global_batch=8), workers=options.workers)
    with tempfile.TemporaryDirectory() as folder:
        spec = prepare(Path(folder), 48).spec("run", plan, settings)
        trainings = soak(spec, kills=options.kills, most=options.most, seed=options.seed)
    print(summary(trainings))
    return 0


def summary(trainings: list[Training]) -> str:
    """The kills and the hashes in one line."""
    others = trainings[1:]
    victims = Counter(kill.victim for one in others for kill in one.kills)
    names = ", ".join(f"{name} {count}" for name, count in sorted(victims.items()))
    hashes = {one.digest for one in trainings}
    return (
        f"{victims.total()} kills ({names}), {len(others)} trainings to their end, {sum(one.starts for one in others)} launches;"
        f" different hashes: {len(hashes)} ({', '.join(sorted(hashes))})"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Ranks of the tiny workload with a fault planted in one of them: run by `tests.engine.tiny_ranks`, as its MODULE.

The environment variable PLANTED names the fault. With `--launch` it is the launcher of such ranks, in a process of its own, for which
STANDBY_AFTER may stand in the environment too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import write_json
from contracts.plan import Plan
from contracts.run import RunSpec
from engine import beacon, launch, worker
from tests.engine import tiny_ranks

if TYPE_CHECKING:
    import pytest

GUILTY = 1
FROM_PROGRESS = 0.2  # the share of the run after which a record is bad
SLOW_SECONDS = 0.06  # a micro-batch, of which a step has four
LARGEST_BATCH, LARGEST_CALL = 2, 1
FAILING_CALL = 8  # the second micro-batch of step 3, where a step has two


def hang() -> None:
    """A record that is never read to its end."""
    _plant_in_reading(lambda: time.sleep(3600))


def error() -> None:
    """A record that cannot be read."""

    def fail() -> None:
        raise LookupError("the row is gone")

    _plant_in_reading(fail)


def _plant_in_reading(fault: Callable[[], None]) -> None:
    from tests.engine.tiny_workload import TinyDataset

    read = TinyDataset.item

    def item(self: Any, index: int, rng: Any, *, draw: int, progress: float) -> Any:
        if progress >= FROM_PROGRESS:
            fault()
        return read(self, index, rng, draw=draw, progress=progress)

    TinyDataset.item = item


def memory() -> None:
    """Too little memory: for micro-batches above LARGEST_BATCH from the call FAILING_CALL on, and for as good as every validation."""
    from tests.engine.tiny_workload import Shipped, TinyObjective

    _fail_above(TinyObjective, lambda batch: len(batch["rows"]), LARGEST_BATCH, from_call=FAILING_CALL)
    _fail_above(Shipped, len, LARGEST_CALL, from_call=1)


def _fail_above(module: Any, size: Callable[[Any], int], largest: int, *, from_call: int) -> None:
    import torch

    compute, calls = module.forward, [0]

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] >= from_call and size(batch) > largest:
            raise torch.OutOfMemoryError("planted: no room")
        return compute(self, batch)

    module.forward = forward


def early_memory() -> None:
    """Too little memory for micro-batches above twice LARGEST_BATCH from the first call on, and once for reading a record."""
    from tests.engine.tiny_workload import TinyObjective

    def fail_once(failed: list[bool] = []) -> None:  # noqa: B006
        if not failed:
            failed.append(True)
            raise MemoryError("planted: no room for a record")

    _fail_above(TinyObjective, lambda batch: len(batch["rows"]), 2 * LARGEST_BATCH, from_call=1)
    _plant_in_reading(fail_once)


def gradient_is_no_number() -> None:
    """From the call FAILING_CALL on, a loss that is a number and whose gradient is none."""
    _add_to_loss(lambda loss: (0 * loss).sqrt())


def gradient_too_large() -> None:
    """From the call FAILING_CALL on, a gradient of numbers whose squares are too large for fp32."""
    _add_to_loss(lambda loss: 1e30 * (loss - loss.detach()))


def _add_to_loss(part: Callable[[Any], Any]) -> None:
    from tests.engine.tiny_workload import TinyObjective

    compute, calls = TinyObjective.forward, [0]

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += 1
        loss = compute(self, batch)["loss"]
        return {"loss": loss + part(loss) if calls[0] >= FAILING_CALL else loss}

    TinyObjective.forward = forward


def starved(before: Callable[[], None] = lambda: None) -> None:
    """As if the system killed the rank in its fourth micro-batch above LARGEST_BATCH; it counts that in the file of launch.KERNEL_COUNTS."""
    from tests.engine.tiny_workload import TinyObjective

    compute, calls = TinyObjective.forward, [0]

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += len(batch["rows"]) > LARGEST_BATCH
        if calls[0] > 3:
            before()
            Path(os.environ["KERNEL_COUNTS"]).write_text("pgfault 12345\noom_kill 8\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, batch)

    TinyObjective.forward = forward


def starved_while_asked() -> None:
    """The same, just after somebody asked the launcher to stop."""
    starved(before=lambda: os.kill(int(os.environ["SLIPWAY_LAUNCHER"]), signal.SIGTERM))


def optimizer_memory() -> None:
    """Too little memory for the optimiser's fourth step."""
    from engine.backends.single import Single

    _fail(Single, "step", call=FAILING_CALL // 2)


def saving_memory() -> None:
    """Too little memory for a copy of the state, once three are written."""
    from engine.backends.single import Single

    _fail(Single, "state", call=FAILING_CALL // 2)


def validation_memory() -> None:
    """Too little memory for the validation of a single row."""
    from tests.engine.tiny_workload import Shipped

    _fail(Shipped, "forward", call=1)


def _fail(kind: Any, method: str, *, call: int) -> None:
    """Let memory run out in a method from one of its calls on, which are counted from 1."""
    import torch

    compute, calls = getattr(kind, method), [0]

    def fail(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] >= call:
            raise torch.OutOfMemoryError("planted: no room")
        return compute(*arguments, **keywords)

    setattr(kind, method, fail)


def lost_loader() -> None:
    """A loader process of the first start that is killed in its call FAILING_CALL."""
    from tests.engine.tiny_workload import TinyObjective

    compute, calls = TinyObjective.forward, [0]
    begun = Path(RunSpec.read(Path(sys.argv[-1])).output) / "lost_loader"

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == FAILING_CALL and not begun.exists():
            begun.touch()
            multiprocessing.active_children()[0].kill()
        return compute(self, batch)

    TinyObjective.forward = forward


def late_hang() -> None:
    """An optimiser whose step never ends, from the fourth on."""
    from engine.backends.single import Single

    step, calls = Single.step, [0]

    def slow(self: Any, *, rate: float, scale: float) -> float:
        calls[0] += 1
        if calls[0] > 3:
            time.sleep(3600)
        return step(self, rate=rate, scale=scale)

    Single.step = slow


def same_share() -> None:
    """Fed what rank 0 is fed."""
    from engine.stream import Stream

    share = Stream.share
    Stream.share = lambda self, step, *, rank, **plan: share(self, step, rank=0, **plan)


def reducer() -> None:
    """No fault: gradients meet in the backward, as they do on GPUs, and there is no second copy of them in DDP's buckets."""
    from engine.backends.ddp import Ddp

    gradients = Ddp.gradients

    def met(self: Any) -> Any:
        places = {value.grad.untyped_storage().data_ptr() for value in self._trained()}
        assert len(places) < len(self._trained()), "gradients are no views of buckets"
        return gradients(self)

    Ddp.divides, Ddp.gradients = False, met


def late_reducer() -> None:
    """No fault: gradients meet in the backward after the first steps, as they do on GPUs."""
    from engine.backends.ddp import Ddp

    begin = Ddp.__init__

    def begin_as_on_gpus(self: Any, plan: Plan) -> None:
        begin(self, plan)
        self.apart = False

    Ddp.__init__ = begin_as_on_gpus


def idle() -> None:
    """No fault: a parameter that every third micro-batch of the rank GUILTY leaves out."""
    _leave_out(lambda call: int(os.environ["RANK"]) == GUILTY and call % 3 == 1)


def idle_reducer() -> None:
    """No fault: both."""
    idle()
    late_reducer()


def late_idle() -> None:
    """A parameter that is left out from the call FAILING_CALL on, where gradients meet in the backward."""
    _leave_out(lambda call: call >= FAILING_CALL)
    reducer()


def _leave_out(when: Callable[[int], bool]) -> None:
    """Let the last layer's bias have no gradient from some calls of the objective, which are counted from 1."""
    from tests.engine.tiny_workload import TinyObjective

    compute, calls = TinyObjective.forward, [0]

    def forward(self: Any, batch: Any) -> Any:
        calls[0] += 1
        bias = self.last.bias
        if when(calls[0]):
            self.last._parameters["bias"] = bias.detach()
        try:
            return compute(self, batch)
        finally:
            self.last._parameters["bias"] = bias

    TinyObjective.forward = forward


def silent() -> None:
    """No fault: no gradient is sent through a process group."""
    from engine.backends.ddp import Ddp

    def send(self: Any, message: Any) -> Any:
        raise AssertionError("gradients were sent")

    Ddp._send = send


def apart() -> None:
    """Other ranks' memory cannot be opened."""
    from engine.backends import shared_memory

    shared_memory._open = lambda place, size: None


def own_file() -> None:
    """No fault: DeepSpeed reads its configuration from a file such as the stage plan writes, and compiles none of its operations."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    from engine.backends import deepspeed

    configure = deepspeed.deepspeed_config

    def written(plan: Plan, *, clip_norm: float | None) -> Any:
        path = Path(RunSpec.read(Path(sys.argv[-1])).output) / f"deepspeed-{os.environ['RANK']}.json"
        write_json(path, configure(plan, clip_norm=clip_norm))
        return str(path)

    def compile_it(self: Any, verbose: bool = True) -> Any:
        raise AssertionError(f"{self.name} would be compiled")

    deepspeed.deepspeed_config = written
    OpBuilder.jit_load = compile_it


def slow() -> None:
    """Steps long enough to be met by somebody who looks on."""
    from tests.engine.tiny_workload import TinyObjective

    compute = TinyObjective.forward

    def forward(self: Any, batch: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return compute(self, batch)

    TinyObjective.forward = forward


def die() -> None:
    """Killed as soon as it has said its first word."""
    beacon.start(Path(RunSpec.read(Path(sys.argv[-1])).output) / "beacons", 0)
    os.kill(os.getpid(), signal.SIGKILL)


def writing() -> None:
    """No fault: each rank lists in writing-RANK what it opens for writing in the run's folder, and what it renames to there."""
    output = Path(RunSpec.read(Path(sys.argv[-1])).output)
    listed = (output / f"writing-{os.environ['RANK']}").open("a", buffering=1)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            place = arguments[1]
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            place = arguments[0]
        else:
            return
        if isinstance(place, str | os.PathLike) and Path(place).is_relative_to(output):
            listed.write(f"{Path(place).relative_to(output)}\n")

    sys.addaudithook(hear)


FAULTS = {
    one.__name__: one
    for one in (
        hang,
        late_hang,
        error,
        memory,
        early_memory,
        starved,
        starved_while_asked,
        gradient_is_no_number,
        gradient_too_large,
        optimizer_memory,
        saving_memory,
        validation_memory,
        lost_loader,
        same_share,
        reducer,
        late_reducer,
        idle,
        idle_reducer,
        late_idle,
        silent,
        apart,
        own_file,
        slow,
        die,
        writing,
    )
}
# The others are planted in the rank GUILTY alone.
EVERYWHERE = (
    "gradient_is_no_number",
    "gradient_too_large",
    "optimizer_memory",
    "saving_memory",
    "validation_memory",
    "lost_loader",
    "reducer",
    "late_reducer",
    "idle",
    "idle_reducer",
    "late_idle",
    "silent",
    "own_file",
    "slow",
    "die",
    "writing",
)


def command(plan: Plan, spec: Path, *, module: str = "engine.worker") -> list[str]:
    """As `engine.launch.command`; the ranks know the tiny workload, and have the fault."""
    *start, path = tiny_ranks.command(plan, spec, module="tests.engine.planted")
    return [*start, module, path]


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Launch ranks with that fault from now on, to the end of the test."""
    monkeypatch.setenv("PLANTED", fault)
    monkeypatch.setattr(launch, "command", command)


def have(fault: str) -> None:
    """Be with that fault from now on, if this rank is one that has it; "" is no fault."""
    if fault in EVERYWHERE or (fault and int(os.environ["RANK"]) == GUILTY):
        FAULTS[fault]()


def faulty_rank(spec: str, fault: str, work: Callable[[str], int] = worker.main) -> int:
    """Be a rank of the run in SPEC.json with that fault, which does `work`. Gives the exit status."""
    sys.argv = [sys.argv[0], spec]
    have(fault)
    return work(spec)


def main(module: str, *words: str) -> int:
    if module == "--launch":
        from benchmarks.soak import launch_as_told

        launch.command = command
        launch.STANDBY_AFTER = float(os.environ.get("STANDBY_AFTER", launch.STANDBY_AFTER))
        return launch_as_told(Path(words[0]))
    have(os.environ["PLANTED"])
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`slipway scale`: what more ranks bring, measured: throughput, epoch time, speed-up and efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.trials import ACCENT, QUIET, bars, number, picture, profiles, run_to_time, say_if_busy, table, write_csv
from contracts.errors import SlipwayError
from contracts.plan import Hardware, Plan
from contracts.progress import clock
from contracts.records import Records
from contracts.run import RunSpec
from engine.planning.division import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from engine.trial import Trial

# Below this efficiency it is said where the time goes.
GOOD = 0.9


@dataclass(frozen=True)
class Scaled:
    """Some ranks, and one rank alone that has the same threads and micro-batches; `epoch_steps` are those of an epoch."""

    plan: Plan
    trial: Trial
    alone: Trial
    epoch_steps: float

    @property
    def epoch_seconds(self) -> float:
        """An estimate: without validation and checkpoints."""
        return self.epoch_steps * self.trial.seconds

    @property
    def speedup(self) -> float:
        """How many times as fast as one rank; NaN where either failed."""
        return (
            self.alone.seconds / self.trial.seconds if self.trial.step_seconds and self.alone.step_seconds else float("nan")
        )

    @property
    def efficiency(self) -> float:
        return self.speedup / self.plan.ranks


def scale(
    workload: Annotated[str, typer.Argument(help="Which workload; its data must be parsed.")],
    more: Annotated[list[int] | None, typer.Argument(hidden=True, metavar="[RANKS]...")] = None,
    ranks: Annotated[
        list[int] | None, typer.Option(help="Numbers of ranks: --ranks 1 2 4 8. Powers of two if not given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed optimiser steps for each number of ranks.")] = 10,
) -> None:
    """Time training steps over numbers of ranks: throughput, epoch time, speed-up and efficiency."""
    from engine.hardware import detect

    hardware = detect()
    spec = run_to_time(workload, hardware)
    ghost_batch = spec.settings["train"]["ghost_batch"]
    wanted: list[int] = sorted({*(ranks or []), *(more or [])}) or usual_ranks(spec.plan, hardware, ghost_batch=ghost_batch)
    plans = [plan_for(number, spec.plan, hardware, ghost_batch=ghost_batch) for number in wanted]
    print(
        f"global batch {spec.plan.global_batch}, {spec.plan.device}, {spec.plan.precision}; {steps} steps each", flush=True
    )
    if wanted[-1] > hardware.cores:
        cores = count(hardware.cores, "core")
        print(f"{wanted[-1]} ranks share {cores}: they take turns, and bring no more than {hardware.cores} would")
    say_if_busy()
    found, target = measure(spec, plans, steps=steps), profiles(workload)
    write_csv(target / "scale.csv", [as_row(one) for one in found])
    draw(found, target / "scale.png", title=f"{workload}: training by the number of ranks", steps=steps)
    print(f"\n{as_table(found)}\n", *(f"* {why(one)}" for one in found if one.efficiency < GOOD), sep="\n")
    print(f"\nwritten: {target / 'scale.png'}, {target / 'scale.csv'}")


def measure(spec: RunSpec, plans: Sequence[Plan], *, steps: int) -> list[Scaled]:
    """Each plan, and the one rank that it is compared with; what is the same is timed once."""
    from engine.trial import run_trial

    timed: dict[tuple[int, int, int], Trial] = {}

    def time(plan: Plan) -> Trial:
        layout = (plan.ranks, plan.threads, plan.micro_batch)
        if layout not in timed:
            timed[layout] = trial = run_trial(replace(spec, plan=plan), steps=steps)
            words = trial.failed or f"{number(trial.samples_per_second)} samples/s"
            print(f"{plan.ranks} x {plan.threads} (ranks x threads), micro-batch {plan.micro_batch}: {words}", flush=True)
        return timed[layout]

    num_records = len(Records.open(Path(spec.records), root=Path(spec.root)).split("train"))
    return [Scaled(plan, time(plan), time(alone(plan)), num_records / plan.global_batch) for plan in plans]


def usual_ranks(plan: Plan, hardware: Hardware, *, ghost_batch: int) -> list[int]:
    """1, 2, 4, ... as far as devices (or cores) go and the global batch divides."""
    units, most = plan.global_batch // ghost_batch, len(hardware.devices) if plan.device == "cuda" else hardware.cores
    return [1 << bit for bit in range(most.bit_length()) if units % (1 << bit) == 0]


def plan_for(ranks: int, planned: Plan, hardware: Hardware, *, ghost_batch: int) -> Plan:
    """The plan on so many ranks, which share the cores of a CPU; micro-batches no larger than planned.

    Raises:
        SlipwayError: when they do not divide the global batch (the text names the nearest that do), or there are not as many GPUs.
    """
    from engine.planning import largest_divisor

    units = planned.global_batch // ghost_batch
    if ranks < 1 or units % ranks:
        nearest = " or ".join(map(str, _nearest(ranks, units)))
        raise SlipwayError(
            f"{ranks} ranks do not divide a global batch of {planned.global_batch}, which is {units} ghost batches of {ghost_batch}:"
            f" take {nearest}, or change train.global_batch"
        )
    if planned.device == "cuda" and ranks > len(hardware.devices):
        raise SlipwayError(
            f"{ranks} ranks need a GPU each, and there are {len(hardware.devices)}: take {len(hardware.devices)} or fewer"
        )
    size = largest_divisor(units // ranks, at_most=planned.micro_batch // ghost_batch)
    on_cpu = {"threads": max(1, hardware.cores // ranks), "workers": 0} if planned.device == "cpu" else {}
    made = replace(
        planned, ranks=ranks, replicas=1, micro_batch=size * ghost_batch, accumulation=units // ranks // size, **on_cpu
    )
    together = "ddp" if planned.backend in ("single", "dp") else planned.backend
    return replace(made, backend=together) if ranks > 1 else alone(made)


def alone(plan: Plan) -> Plan:
    """One rank with the threads and micro-batches of `plan`, and all of the global batch."""
    backend = "single" if plan.backend in ("dp", "ddp", "accelerate") else plan.backend
    return replace(plan, backend=backend, ranks=1, accumulation=plan.accumulation * plan.ranks)


def _nearest(ranks: int, units: int) -> list[int]:
    """The divisors of `units` next to `ranks`, below and above."""
    divisors = [one for one in range(1, units + 1) if units % one == 0]
    return [*[one for one in divisors if one < ranks][-1:], *[one for one in divisors if one > ranks][:1]]


def as_row(one: Scaled) -> dict[str, Any]:
    """A line of scale.csv; times in seconds."""
    trial = one.trial
    return {
        "ranks": one.plan.ranks,
        "threads": one.plan.threads,
        "backend": one.plan.backend,
        "micro_batch": one.plan.micro_batch,
        "accumulation": one.plan.accumulation,
        "samples_per_second": round(trial.samples_per_second, 3),
        "step_seconds": round(trial.seconds, 6),
        "sync_seconds": round(trial.breakdown.get("sync", 0.0), 6),
        "epoch_seconds": round(one.epoch_seconds, 3),
        "one_rank_samples_per_second": round(one.alone.samples_per_second, 3),
        "speedup": round(one.speedup, 4),
        "efficiency": round(one.efficiency, 4),
        "peak_bytes": trial.peak_bytes,
        "failed": trial.failed or one.alone.failed,
    }


def as_table(found: Sequence[Scaled]) -> str:
    """What was found, for the terminal."""
    titles = ["ranks x threads", "samples/s", "ms/step", "sync ms", "epoch", "speed-up", "efficiency"]
    rows = []
    for one in found:
        trial, layout = one.trial, f"{one.plan.ranks} x {one.plan.threads}"
        if trial.failed:
            rows.append([layout, trial.failed])
            continue
        times = [number(trial.samples_per_second), number(1000 * trial.seconds), number(1000 * trial.breakdown["sync"])]
        gain = [f"{one.speedup:.2f}", f"{one.efficiency:.0%}"] if one.alone.step_seconds else ["-", "-"]
        rows.append([layout, *times, clock(one.epoch_seconds), *gain])
    return table(titles, rows) + "\n\nspeed-up and efficiency: against one rank with the same threads and micro-batches"


def why(one: Scaled) -> str:
    """Where the time goes that ranks lose together."""
    ideal = one.alone.seconds / one.plan.ranks
    lost, sync = one.trial.seconds - ideal, one.trial.breakdown["sync"] - one.alone.breakdown["sync"] / one.plan.ranks
    share = min(1.0, max(0.0, sync / lost))
    return (
        f"{one.plan.ranks} ranks reach {one.efficiency:.0%}: a step takes {number(1000 * lost)} ms more than its part of one rank's, of"
        f" which {share:.0%} is waiting for each other, the rest slower work (shared caches, memory bandwidth and cores)"
    )


def draw(found: Sequence[Scaled], path: Path, *, title: str, steps: int) -> None:
    """Throughput, epoch time and speed-up, side by side."""
    labels = [f"{one.plan.ranks} x {one.plan.threads}" for one in found]
    plan = found[-1].plan
    subtitle = (
        f"{plan.backend} on {'GPUs' if plan.device == 'cuda' else 'CPU ranks'}, {plan.precision}, global batch {plan.global_batch}; medians of"
        f" {steps} steps; an epoch without validation"
    )
    with picture(path, title, subtitle, panels=3) as (speed, epoch, gain):
        bars(speed, labels, [one.trial.samples_per_second for one in found])
        speed.set_title("Throughput (samples/s)")
        seconds = [one.epoch_seconds if one.trial.step_seconds else 0.0 for one in found]
        unit, size = ("minutes", 60) if max(seconds) > 120 else ("seconds", 1)
        bars(epoch, labels, [value / size for value in seconds])
        epoch.set_title(f"An epoch ({unit})")
        for axes in (speed, epoch):
            axes.set_xlabel("ranks x threads")
        _gain(gain, found)


def _gain(axes: Axes, found: Sequence[Scaled]) -> None:
    ranks, gains = [one.plan.ranks for one in found], [one.speedup for one in found]
    axes.plot(ranks, ranks, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    axes.plot(ranks, gains, color=ACCENT, linewidth=2, marker="o", markersize=6, label="measured")
    for one in found:
        if one.speedup > 0:
            place = (one.plan.ranks, one.speedup)
            axes.annotate(f"{one.efficiency:.0%}", place, (0, -15), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_title("Speed-up over one rank, and efficiency")
    axes.set_xlabel("ranks")
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log", base=2)
        axis.set_ticks(ranks, [str(one) for one in ranks])
        axis.set_ticks([], minor=True)
    axes.set_xlim(min(ranks) / 1.35, max(ranks) * 1.35)
    axes.set_ylim(min([*ranks, *(one for one in gains if one > 0)]) / 1.35, max(ranks) * 1.2)
    axes.legend(loc="upper left")

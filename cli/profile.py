"""`slipway profile`: what a training step costs by the size of its micro-batches, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.trials import (
    GIB,
    QUIET,
    bars,
    layout,
    number,
    picture,
    places_on,
    profiles,
    run_to_time,
    say_if_busy,
    table,
    write_csv,
)
from contracts.errors import SlipwayError
from contracts.plan import Hardware, Plan
from contracts.run import RunSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from engine.trial import Trial

COLOURS = {"data": "#e0a03b", "forward": "#3b6fd4", "backward": "#7fa3e6", "optimizer": "#2a9d78", "sync": "#c4518c"}
# What is within this of the fastest is as fast.
EQUAL = 0.03
# Shares of a step above which it is worth doing something.
MUCH_DATA, MUCH_SYNC, MUCH_OPTIMIZER = 0.1, 0.2, 0.2
FULL, ROOMY = 0.9, 0.5
# A step that took this many times the median says that the machine was busy.
RESTLESS = 1.3


@dataclass(frozen=True)
class Measured:
    """A plan and what a step of it costs."""

    plan: Plan
    trial: Trial


def profile(
    workload: Annotated[str, typer.Argument(help="Which workload; its data must be parsed.")],
    steps: Annotated[int, typer.Option(min=1, help="Timed optimiser steps for each size of micro-batch.")] = 10,
) -> None:
    """Time training steps over sizes of micro-batch: throughput, memory, where the time goes, and what to change."""
    from engine.hardware import detect

    hardware = detect()
    spec = run_to_time(workload, hardware)
    print(f"{layout(spec.plan)}, global batch {spec.plan.global_batch}; {steps} steps each", flush=True)
    say_if_busy()
    found = measure(spec, steps=steps)
    limit, target = memory_limit(hardware, spec.plan), profiles(workload)
    write_csv(target / "profile.csv", [as_row(one) for one in found])
    title = f"{workload}: a training step by micro-batch"
    draw(found, spec.plan, target / "profile.png", title=title, limit=limit, steps=steps)
    print(f"\n{as_table(found)}\n", *(f"* {line}" for line in advice(found, spec.plan, limit=limit)), sep="\n")
    print(f"\nwritten: {target / 'profile.png'}, {target / 'profile.csv'}")


def measure(spec: RunSpec, *, steps: int) -> list[Measured]:
    """Every division that is tried, small to large, up to the first that does not fit.

    Raises:
        SlipwayError: when not even the smallest does.
    """
    from engine.trial import run_trial

    found: list[Measured] = []
    for plan in divisions(spec.plan, ghost_batch=spec.settings["train"]["ghost_batch"]):
        trial = run_trial(replace(spec, plan=plan), steps=steps)
        found.append(Measured(plan, trial))
        print(f"micro-batch {plan.micro_batch}: {_in_short(trial)}", flush=True)
        if trial.failed:
            break
    if found[0].trial.failed:
        raise SlipwayError(
            f"not even one ghost batch of {found[0].plan.micro_batch} samples trains here: {found[0].trial.failed}. Lower"
            " train.ghost_batch, make the samples smaller, or set plan.activation_checkpointing"
        )
    return found


def divisions(plan: Plan, *, ghost_batch: int) -> list[Plan]:
    """The plan with micro-batches of 1, 2, 4, ... ghost batches up to a rank's whole share, and with its own, small to large.

    Where a power of two does not divide the share, the next smaller number that does stands for it.
    """
    from engine.planning import largest_divisor

    share = plan.global_batch // plan.ranks // ghost_batch
    powers = {largest_divisor(share, at_most=1 << bit) for bit in range(share.bit_length())}
    sizes = sorted(powers | {share, plan.micro_batch // ghost_batch})
    return [replace(plan, micro_batch=size * ghost_batch, accumulation=share // size) for size in sizes]


def memory_limit(hardware: Hardware, plan: Plan) -> int:
    """The bytes that a rank may take: of the smallest GPU, or its part of the machine's memory."""
    if plan.device == "cuda":
        return min(one.memory for one in hardware.devices)
    return hardware.memory // plan.ranks


def _in_short(trial: Trial) -> str:
    if trial.failed:
        return trial.failed
    return f"{number(trial.samples_per_second)} samples/s, {number(1000 * trial.seconds)} ms a step"


def as_row(one: Measured) -> dict[str, Any]:
    """A line of profile.csv; times in seconds."""
    from engine.trial import PARTS

    trial = one.trial
    return {
        "micro_batch": one.plan.micro_batch,
        "accumulation": one.plan.accumulation,
        "samples_per_second": round(trial.samples_per_second, 3),
        "step_seconds": round(trial.seconds, 6),
        **{f"{name}_seconds": round(trial.breakdown.get(name, 0.0), 6) for name in PARTS},
        "peak_bytes": trial.peak_bytes,
        "failed": trial.failed,
    }


def as_table(found: Sequence[Measured]) -> str:
    """What was found, for the terminal."""
    from engine.trial import PARTS

    rows = []
    for one in found:
        plan, trial = one.plan, one.trial
        size = f"{plan.micro_batch} x {plan.accumulation}"
        parts = [number(1000 * trial.breakdown.get(name, 0.0)) for name in PARTS]
        times = [number(trial.samples_per_second), number(1000 * trial.seconds), *parts, f"{trial.peak_bytes / GIB:.2f}"]
        rows.append([size, trial.failed] if trial.failed else [size, *times])
    return table(["micro x times", "samples/s", "ms/step", *PARTS, "peak GiB"], rows)


def advice(found: Sequence[Measured], planned: Plan, *, limit: int) -> Iterator[str]:
    """What follows from the numbers, a sentence or two each; `limit` in bytes a rank."""
    good = [one for one in found if not one.trial.failed]
    fastest = max(one.trial.samples_per_second for one in good)
    best = next(one for one in good if one.trial.samples_per_second >= (1 - EQUAL) * fastest)
    yield _on_size(good, best, planned)
    yield from (
        f"Micro-batches of {one.plan.micro_batch} do not train here: {one.trial.failed}."
        for one in found
        if one.trial.failed
    )
    yield from _on_parts(best)
    yield _on_memory(best, limit)
    slowest = max(max(one.trial.step_seconds) / one.trial.seconds for one in good)
    if slowest > RESTLESS:
        yield (
            f"Some steps took {slowest:.1f} times the median: if something else was working on this machine, small differences"
            " here mean nothing."
        )


def _on_size(good: Sequence[Measured], best: Measured, planned: Plan) -> str:
    size = best.plan.micro_batch
    if len(good) == 1:
        return f"Micro-batches of {size} are the only ones that divide the global batch of {planned.global_batch} and fit."
    own = next((one for one in good if one.plan.micro_batch == planned.micro_batch), None)
    if own is None:
        return f"The planned micro-batches of {planned.micro_batch} do not fit: set plan.micro_batch to {size}."
    gain = best.trial.samples_per_second / own.trial.samples_per_second
    if size == planned.micro_batch or gain < 1 + EQUAL:
        return f"The planned micro-batches of {planned.micro_batch} are as fast as any (within {EQUAL:.0%})."
    return f"Micro-batches of {size} train {gain:.2f} times as fast as the planned {planned.micro_batch}: set plan.micro_batch to {size}."


def _on_parts(one: Measured) -> Iterator[str]:
    plan, total = one.plan, sum(one.trial.breakdown.values())
    share = {name: seconds / total for name, seconds in one.trial.breakdown.items()}
    if share["data"] > MUCH_DATA:
        yield f"Data takes {share['data']:.0%} of a step, {_on_data(plan)}"
    if share["sync"] > MUCH_SYNC:
        yield f"Waiting for other ranks takes {share['sync']:.0%} of a step: {_on_sync(plan)}"
    if plan.ranks > 1 and (plan.device == "cuda" or plan.backend in ("fsdp", "deepspeed")):
        yield "Ranks exchange inside the forward and backward here, which count it: `slipway scale` shows what it costs."
    if share["optimizer"] > MUCH_OPTIMIZER:
        yield (
            f"The optimiser takes {share['optimizer']:.0%} of a step. It runs once a step, so a larger train.global_batch gives it"
            " less (which changes what is learnt: see train.learning_rate_rule)."
        )


def _on_data(plan: Plan) -> str:
    ways = "store the samples at the size that trains, and on a fast local disk"
    if plan.workers:
        return f"although {plan.workers} loader processes a rank read ahead: give the job more cores, or {ways}."
    return f"because each rank makes its own batches: with 4 or more cores a rank the plan starts loader processes; otherwise {ways}."


def _on_sync(plan: Plan) -> str:
    ways = [
        "see with `slipway scale` whether fewer ranks do as much",
        "raise train.global_batch (which changes what is learnt)",
    ]
    if plan.backend in ("ddp", "accelerate") and not plan.compress_gradients:
        ways.insert(0, "set plan.compress_gradients")
    if plan.backend in ("fsdp", "deepspeed") and plan.accumulation > 1:
        ways.insert(0, "raise plan.micro_batch, as weights are gathered for every micro-batch")
    return f"{'; '.join(ways)}."


def _on_memory(best: Measured, limit: int) -> str:
    peak = best.trial.peak_bytes
    text = f"With micro-batches of {best.plan.micro_batch} a rank takes {peak / GIB:.2f} of {limit / GIB:.1f} GiB"
    if peak > FULL * limit:
        return f"{text}: nearly all. A smaller plan.micro_batch or plan.activation_checkpointing makes room."
    if peak < ROOMY * limit:
        return f"{text}: there is room for larger samples or a larger model."
    return f"{text}."


def draw(found: Sequence[Measured], planned: Plan, path: Path, *, title: str, limit: int, steps: int) -> None:
    """Throughput, parts of a step and memory, side by side."""
    labels = [str(one.plan.micro_batch) for one in found]
    rates = [one.trial.samples_per_second for one in found]
    subtitle = f"{layout(planned)}, global batch {planned.global_batch}; medians of {steps} steps; planned micro-batch {planned.micro_batch}"
    with picture(path, title, subtitle, panels=3) as (speed, parts, memory):
        bars(speed, labels, rates, marked=rates.index(max(rates)))
        speed.set_title("Throughput (samples/s)")
        _stack(parts, found, labels)
        parts.set_title(f"A step of {planned.global_batch} samples (ms)")
        bars(memory, labels, [one.trial.peak_bytes / GIB for one in found])
        memory.set_title("Peak memory of a rank (GiB)")
        if limit < 2.5 * memory.get_ylim()[1] * GIB:
            _limit(memory, limit / GIB)
        for axes in (speed, parts, memory):
            axes.set_xlabel("samples a micro-batch")


def _limit(axes: Axes, height: float) -> None:
    axes.axhline(height, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
    axes.annotate(f"{height:.1f} GiB for each", (0.01, height), color=QUIET, fontsize=8, **place)
    axes.set_ylim(top=1.14 * height)


def _stack(axes: Axes, found: Sequence[Measured], labels: Sequence[str]) -> None:
    floor = [0.0] * len(found)
    for name, colour in COLOURS.items():
        heights = [1000 * one.trial.breakdown.get(name, 0.0) for one in found]
        axes.bar(
            range(len(found)),
            heights,
            min(0.62, 0.2 * len(found)),
            bottom=floor,
            color=colour,
            label=name,
            edgecolor="white",
            linewidth=0.6,
        )
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    places_on(axes, labels)
    axes.legend(reverse=True, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1, handleheight=1, fontsize=8.5)

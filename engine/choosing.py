"""From the table to the plan: where memory can run out it is tried, and where it is wished rivals are timed.

What was measured is kept in .slipway/plans, by the machine, the model and the wishes that it was measured for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.plan import Hardware, Plan
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import code_of
from engine.planning import (
    COST_OF_RECOMPUTING,
    Footprint,
    Installed,
    count,
    is_cramped,
    look_around,
    memory_limit,
    plan,
    rivals,
    with_micro_batch,
)

if TYPE_CHECKING:
    from engine.probing import Probed
    from engine.trial import Trial

GIB = 1 << 30
# Optimiser steps that each rival is timed for.
NUM_STEPS = 8
# Rivals that reach this share of the fastest are timed once more, as the machine may have been busy.
FINAL = 0.7
BUSY = 1.0
# Rivals this near to the fastest, or as near as two timings of one plan are to each other, are as fast: the simplest is taken.
TIE = 0.03
Time = Callable[[RunSpec, int], "Trial"]
FOLDER = Path(".slipway") / "plans"
PACKAGES = ("torch", "accelerate", "deepspeed")
NOTHING_TO_PROBE = (
    "memory: nothing to probe, as training runs on the CPU, where micro-batches of a few samples are as fast as larger ones"
)


@dataclass(frozen=True)
class Chosen:
    """A plan, in `lines` how it was found, and in `rows` what was timed on the way (none where nothing was)."""

    plan: Plan
    lines: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()


def choose(
    workload: str,
    settings: Settings,
    hardware: Hardware,
    spec_for: Callable[[Plan], RunSpec],
    *,
    measure: bool = False,
    anew: bool = False,
    time: Time | None = None,
) -> Chosen:
    """The plan for this machine, and how it was found. With `measure` rivals are timed; with `anew` nothing kept is used.

    `spec_for` gives a run to measure, of which nothing is kept; it is asked only where something is measured.

    Raises:
        SlipwayError: when a wish cannot be honoured, or not even one ghost batch fits.
    """
    path = place(workload, settings, hardware)
    kept = None if anew else read(path)
    if kept and (kept.rows or not measure):
        said = f"measured before and taken from {path}; `slipway plan {workload} --anew` measures again"
        return replace(kept, lines=(said, *kept.lines))
    installed = look_around(hardware)
    made = plan(hardware, settings.train, settings.plan, installed=installed)
    probes = (made.device == "cuda" or memory_limit() is not None) and settings.plan.micro_batch is None
    if not probes and not measure:
        return Chosen(
            made, (NOTHING_TO_PROBE if made.device == "cpu" else "memory: not probed, as plan.micro_batch is set",)
        )
    spec = spec_for(made)
    chosen = _measured(spec, settings, hardware, installed, probes, _timed if time is None else time) if measure else None
    chosen = chosen or Chosen(*_with_memory(spec, settings, hardware, installed))
    keep(path, chosen)
    return chosen


def _with_memory(
    spec: RunSpec, settings: Settings, hardware: Hardware, installed: Installed
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the largest micro-batch that fits, and what was found on the way."""
    from engine.memory import footprint

    print("plan: measuring what the model takes, then trying micro-batches", flush=True)
    size = footprint(spec)
    made = _made(hardware, settings, installed, size)
    if settings.plan.activation_checkpointing == "auto" and (isinstance(made, SlipwayError) or is_cramped(made)):
        size = replace(size, recomputed=_recomputed(spec))
        made = _made(hardware, settings, installed, size)
    if isinstance(made, SlipwayError):
        raise made
    tried, lines = _probed(replace(spec, plan=made), settings)
    return tried, (_said_of(size, made), *lines)


def _recomputed(spec: RunSpec) -> Footprint | None:
    """What the model takes with activations computed twice; None where it does not let them be, which is said."""
    from engine.memory import footprint

    try:
        return footprint(_recomputing(spec))
    except Exception as error:  # whatever a model's layers raise when they are called anew
        print(f"plan: activations of this model cannot be computed twice: {type(error).__name__}: {error}", flush=True)
        return None


def _made(hardware: Hardware, settings: Settings, installed: Installed, size: Footprint) -> Plan | SlipwayError:
    """The plan for a model of this size, or why there is none."""
    try:
        return plan(hardware, settings.train, settings.plan, installed=installed, footprint=size)
    except SlipwayError as refusal:
        return refusal


def _recomputing(spec: RunSpec, reason: str = "") -> RunSpec:
    """The same run with activations computed twice, for this reason."""
    reasons = {**spec.plan.reasons, "activation_checkpointing": reason}
    return replace(spec, plan=replace(spec.plan, activation_checkpointing=True, reasons=reasons))


def _said_of(size: Footprint, made: Plan) -> str:
    if made.activation_checkpointing and size.recomputed:
        size = size.recomputed
    resting = size.resting(made.backend, ranks=made.ranks, zero_stage=made.zero_stage, offload=made.offload)
    numbers = f"{resting / GIB:.3f} GiB a rank before the first sample, {size.sample / GIB:.4f} a sample"
    return f"memory model: {numbers} ({'; '.join(size.notes)})"


def _probed(spec: RunSpec, settings: Settings) -> tuple[Plan, tuple[str, ...]]:
    """The spec's plan with the largest micro-batch that fits on all of its ranks; with activations computed twice where none does
    otherwise and the wishes leave that open.

    Raises:
        SlipwayError: when none does.
    """
    from engine.probing import probe

    found = probe(spec)
    ghost, recomputed = settings.train.ghost_batch, spec.plan.activation_checkpointing
    if found.micro_batch is None and not recomputed and settings.plan.activation_checkpointing == "auto":
        told = f"not even a ghost batch of {count(ghost, 'sample')} fits with activations kept"
        print(f"plan: {told}; trying again with activations computed twice", flush=True)
        reason = f"{COST_OF_RECOMPUTING}: tried, {told}"
        made, lines = _probed(_recomputing(spec, reason), settings)
        return made, (f"probe: {told}", *lines)
    if found.micro_batch is None:
        out = "" if recomputed else "set plan.activation_checkpointing to true, "
        raise SlipwayError(
            f"memory runs out with a single ghost batch of {ghost} samples on {spec.plan.backend}"
            f"{', activations computed twice' if recomputed else ''}: {out}lower train.ghost_batch, or let plan.offload be optimizer"
        )
    made, story = with_micro_batch(spec.plan, found.micro_batch), _story(found)
    micros = f"{made.ranks} x {made.micro_batch} x {made.accumulation} = the global batch of {made.global_batch}"
    reasons = {**made.reasons, "micro_batch": story, "accumulation": f"ranks x batch x accumulation: {micros}"}
    return replace(made, reasons=reasons), (f"probe: {story}",)


def _story(found: Probed) -> str:
    """What a probe found, in words."""
    tries = len(found.fits) + len(found.fails)
    peak = f", at {found.peak / GIB:.3f} GiB" if found.peak else ""
    beyond = f"; {min(found.fails)} do not" if found.fails else "; no more divide the batch"
    return (
        f"{found.micro_batch} samples fit on every rank{peak}{beyond} ({tries} tries of {len(found.candidates)} candidates)"
    )


def _timed(spec: RunSpec, steps: int) -> Trial:
    from engine.trial import run_trial

    return run_trial(spec, steps=steps)


def _measured(
    spec: RunSpec, settings: Settings, hardware: Hardware, installed: Installed, probes: bool, time: Time
) -> Chosen:
    """The fastest of the rivals, its micro-batch probed where memory can run out."""
    plans, refused = rivals(hardware, settings.train, settings.plan, installed=installed)
    lines = [f"not timed: {name}: {why}" for name, why in refused.items()]
    busy = psutil.getloadavg()[0]
    if busy > BUSY * hardware.cores:
        lines.append(
            f"others were at work too (load {busy:.1f} on {hardware.cores} cores): measure again on a quiet machine"
        )
    rows = [_row(rival, spec, time) for rival in plans]
    top = max(row["samples_per_second"] for row in rows)
    if not top and settings.plan.activation_checkpointing == "auto":
        print("plan: none could be timed; trying again with activations computed twice", flush=True)
        wishes = settings.plan.model_copy(update={"activation_checkpointing": True})
        return _measured(spec, settings.model_copy(update={"plan": wishes}), hardware, installed, probes, time)
    if not top:
        raise SlipwayError("no plan could be timed: " + "; ".join(f"{row['name']}: {row['failed']}" for row in rows))
    rows, noise = _timed_again(rows, plans, FINAL * top, spec, time)
    if (tie := max(TIE, noise)) > TIE:
        lines.append(
            f"two timings of one plan differ by {tie:.0%}: plans that are as near to the fastest count as equally fast"
        )
    speeds = [row["samples_per_second"] for row in rows]
    best = picked(speeds, tie)
    rows = [
        {**row, "ratio": row["samples_per_second"] / max(speeds), "chosen": place == best} for place, row in enumerate(rows)
    ]
    made = _explained(plans[best], rows, best, settings, tie)
    if probes:
        made, told = _probed(replace(spec, plan=made), settings)
        lines += told
    return Chosen(made, tuple(lines), tuple(rows))


def _timed_again(
    rows: list[dict[str, Any]], plans: list[Plan], least: float, spec: RunSpec, time: Time
) -> tuple[list[dict[str, Any]], float]:
    """The rows, those of `least` samples/s or more the better of two timings, and by what share their two differ, in the median."""
    better, differences = [], []
    for row, rival in zip(rows, plans, strict=True):
        timings = [row, *([_row(rival, spec, time)] if row["samples_per_second"] >= least else [])]
        slow, quick = min(timings, key=_speed), max(timings, key=_speed)
        better.append(quick)
        if len(timings) == 2 and _speed(slow):
            differences.append(1 - _speed(slow) / _speed(quick))
    return better, median(differences or [0.0])


def _speed(row: Mapping[str, Any]) -> float:
    return row["samples_per_second"]


def _row(rival: Plan, spec: RunSpec, time: Time) -> dict[str, Any]:
    """What timing one plan gave. Its speed is that of its less disturbed steps: the lower quartile of their times."""
    try:
        trial = time(replace(spec, plan=rival), NUM_STEPS)
        peak, failed = trial.peak_bytes, trial.failed
        quick = sorted(trial.step_seconds)[len(trial.step_seconds) // 4] if trial.step_seconds else math.inf
    except SlipwayError as error:
        quick, peak, failed = math.inf, 0, str(error)
    kind = {name: getattr(rival, name) for name in ("backend", "ranks", "threads", "precision", "compile", "micro_batch")}
    row = {"name": name_of(rival), **kind, "samples_per_second": rival.global_batch / quick, "peak_bytes": peak}
    print(f"plan: {row['name']}: {failed or format(row['samples_per_second'], '.1f') + ' samples/s'}", flush=True)
    return {**row, "failed": failed}


def name_of(rival: Plan) -> str:
    """A plan in the words that tell it from its rivals."""
    parts = [
        rival.backend,
        f"{rival.ranks} x {count(rival.threads, 'thread')}",
        rival.precision,
        *(["compiled"] if rival.compile else []),
    ]
    return ", ".join(parts)


def picked(speeds: list[float], tie: float) -> int:
    """The place of the fastest, or of the first that is within the share `tie` of it."""
    return next(place for place, speed in enumerate(speeds) if speed >= (1 - tie) * max(speeds))


def _explained(made: Plan, rows: list[dict[str, Any]], best: int, settings: Settings, tie: float) -> Plan:
    """The plan with what was measured as the reason of what the user left open."""
    row, fastest = rows[best], max(rows, key=lambda one: one["samples_per_second"])
    told = f"measured: {row['samples_per_second']:.1f} samples/s"
    if row is fastest:
        others = [one for one in rows if one is not row and one["samples_per_second"]]
        second = max(others, key=lambda one: one["samples_per_second"], default=None)
        told += f", {1 / second['ratio']:.2f} times {second['name']}" if second else ", the only one"
    else:
        told += f", within {tie:.0%} of {fastest['name']} and simpler or more exact"
    opened = [
        name
        for name in ("backend", "ranks", "precision", "compile")
        if getattr(settings.plan, name) in ("auto", None, False) and len({one[name] for one in rows}) > 1
    ]
    return replace(made, reasons={**made.reasons, **dict.fromkeys(opened, told)})


def table(rows: tuple[Mapping[str, Any], ...]) -> list[str]:
    """The rows as lines of text, the fastest first; a ratio of 1 is the fastest."""
    ordered = sorted(rows, key=lambda row: -row["samples_per_second"])
    width = max((len(row["name"]) for row in rows), default=0)
    return [f"{row['name']:<{width}}  {_numbers(row)}" + ("  <- chosen" if row["chosen"] else "") for row in ordered]


def _numbers(row: Mapping[str, Any]) -> str:
    if row["failed"]:
        return f"no: {row['failed']}"
    return f"{row['samples_per_second']:9.1f} samples/s  {row['ratio']:5.2f}  {row['peak_bytes'] / GIB:6.2f} GiB"


def place(workload: str, settings: Settings, hardware: Hardware) -> Path:
    """The file of the plan for this machine, data, wishes and model, which settings of `prepare` and the workload's code decide too."""
    versions = {name: _version(name) for name in PACKAGES}
    parts = settings.model_dump(mode="json", include={"download", "parse", "prepare", "plan", "train"})
    known = [hardware.fingerprint, workload, code_of(workload), parts, versions, memory_limit()]
    text = json.dumps(known, sort_keys=True)
    return FOLDER / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.json"


def read(path: Path) -> Chosen | None:
    """What was kept, or None where nothing readable was."""
    try:
        value = read_json(path)
        return Chosen(Plan(**value["plan"]), tuple(value["lines"]), tuple(value["rows"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def keep(path: Path, chosen: Chosen) -> None:
    """Write it for the next time."""
    write_json(path, dataclasses.asdict(chosen))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

"""How a global batch is divided on a machine: from hardware, settings and wishes to a plan with a reason for every line.

Nothing here starts a process or imports torch. What has to be measured is measured elsewhere and comes in as numbers:
`engine/memory.py` (the model's footprint), `engine/probing.py` (the largest micro-batch), `engine/trial.py` (speed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from contracts.errors import SlipwayError
from contracts.plan import Hardware, Plan, Precision
from contracts.settings import PlanSettings, TrainSettings
from engine.planning.cpu import on_cpu, thread_speed
from engine.planning.division import count, largest_divisor, micro_batches, smaller, with_micro_batch
from engine.planning.footprint import Footprint, memory_limit
from engine.planning.gpu import on_gpus
from engine.planning.options import with_options
from engine.planning.platforms import (
    Installed,
    has_libuv,
    look_around,
    meeting,
    process_group,
    process_group_environment,
    torchrun,
)
from engine.planning.recomputing import COST_OF_RECOMPUTING, is_cramped, with_activations
from engine.planning.wishes import refuse_impossible, unmet, with_accelerate_config

__all__ = [
    "COST_OF_RECOMPUTING",
    "Footprint",
    "Installed",
    "count",
    "has_libuv",
    "is_cramped",
    "largest_divisor",
    "look_around",
    "meeting",
    "memory_limit",
    "micro_batches",
    "plan",
    "process_group",
    "process_group_environment",
    "rivals",
    "smaller",
    "thread_speed",
    "torchrun",
    "unmet",
    "with_micro_batch",
]
# The order of preference among plans that are equally fast: the fewest moving parts first.
SIMPLEST_FIRST = ("single", "dp", "ddp", "accelerate", "fsdp", "deepspeed")
NO_WISHES, FULL = PlanSettings(), Installed()


def plan(
    hardware: Hardware,
    settings: TrainSettings,
    wishes: PlanSettings = NO_WISHES,
    *,
    installed: Installed = FULL,
    footprint: Footprint | None = None,
) -> Plan:
    """The layout of one training run: ranks x micro_batch x accumulation is exactly the global batch.

    A micro-batch is a whole number of ghost batches, so that batch statistics do not depend on the layout. `wishes` are
    honoured or refused. `footprint`, where it is known, replaces the table of first guesses by the GPU's size, and decides
    whether activations are computed twice.

    Raises:
        SlipwayError: when a wish cannot be honoured here, or one ghost batch cannot fit; the text says what to change.
    """
    accelerated = with_accelerate_config(wishes)
    wishes = accelerated.wishes
    machine = replace(hardware, devices=()) if accelerated.use_cpu else hardware
    refuse_impossible(machine, settings, wishes, installed)
    lay_out = on_gpus if machine.devices else on_cpu
    made, wishes = with_activations(
        lambda wish, size: lay_out(machine, settings, wish, installed, size), settings, wishes, footprint
    )
    made = with_options(made, wishes)
    reasons = dict(made.reasons)
    if accelerated.taken:
        reasons["backend"] += f"; {accelerated.taken}"
    if hardware.devices and accelerated.use_cpu:
        reasons["device"] = f"{wishes.accelerate_config} leaves the GPUs alone"
    return replace(made, hardware=hardware.fingerprint, reasons=reasons)


def rivals(
    hardware: Hardware,
    settings: TrainSettings,
    wishes: PlanSettings = NO_WISHES,
    *,
    installed: Installed = FULL,
    footprint: Footprint | None = None,
) -> tuple[list[Plan], dict[str, str]]:
    """The plans worth timing against each other, the simplest and most exact first, and why others are none, by backend.

    They differ in what the wishes leave open: backend, precision and, on GPUs, whether the model is compiled.
    """
    accelerated = with_accelerate_config(wishes)
    wishes = accelerated.wishes.model_copy(update={"accelerate_config": None})
    machine = replace(hardware, devices=()) if accelerated.use_cpu else hardware
    made, refused = [], {}
    for backend in SIMPLEST_FIRST if wishes.backend == "auto" else (wishes.backend,):
        for precision, compiled in _kinds(machine, wishes, installed):
            wish = wishes.model_copy(update={"backend": backend, "precision": precision, "compile": compiled})
            try:
                rival = plan(machine, settings, wish, installed=installed, footprint=footprint)
            except SlipwayError as error:
                refused[backend] = str(error)
                continue
            if why := _pointless(rival, machine, wishes, installed):
                refused[backend] = why
            else:
                made.append(replace(rival, hardware=hardware.fingerprint))
    return made, refused


def _kinds(hardware: Hardware, wishes: PlanSettings, installed: Installed) -> Iterator[tuple[str, bool]]:
    """Precisions, with and without compiling."""
    for precision in _precisions(hardware) if wishes.precision == "auto" else (wishes.precision,):
        yield precision, wishes.compile
        if hardware.devices and installed.compiler and not wishes.compile:
            yield precision, True


def _precisions(hardware: Hardware) -> tuple[Precision, ...]:
    """Those that run natively, the most exact first."""
    if not hardware.devices:
        return ("fp32", "bf16") if hardware.bf16_cpu else ("fp32",)
    lowest = min(one.capability for one in hardware.devices)
    return ("fp32", "bf16") if lowest >= (8, 0) else ("fp32", "fp16") if lowest >= (7, 0) else ("fp32",)


def _pointless(rival: Plan, hardware: Hardware, wishes: PlanSettings, installed: Installed) -> str:
    """Why timing a plan would teach nothing; empty where it would."""
    if wishes.backend != "auto" or rival.backend == "single":
        return ""
    if rival.backend == "dp" and (rival.replicas == 1 or meeting(rival.device, hardware.platform, installed).group):
        return "for several GPUs whose ranks cannot meet only"
    return "" if rival.ranks > 1 or rival.backend == "dp" else "there would be one rank, with nothing to exchange"

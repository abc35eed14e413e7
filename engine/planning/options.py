"""The parts of a plan that are as the user wishes them on every machine, each with what it does or why it does nothing."""

from __future__ import annotations

from dataclasses import replace

from contracts.plan import Plan
from contracts.settings import PlanSettings
from engine.planning.wishes import SHARDING


def with_options(made: Plan, wishes: PlanSettings) -> Plan:
    """The plan with the wishes that no hardware decides."""
    sends = made.ranks > 1 and made.backend not in SHARDING
    made = replace(
        made,
        activation_checkpointing=wishes.activation_checkpointing is True,
        compile=wishes.compile,
        compress_gradients=wishes.compress_gradients and sends,
        zero_stage=wishes.zero_stage,
        offload=wishes.offload,
        restarts=wishes.restarts,
        hang_seconds=wishes.hang_seconds,
    )
    return replace(made, reasons={**made.reasons, **_reasons(made, wishes)})


def _reasons(made: Plan, wishes: PlanSettings) -> dict[str, str]:
    return {
        "compile": "the first step takes minutes, the others less time"
        if made.compile
        else "as params.yaml says; `slipway plan --measure` tries it on GPUs",
        "compress_gradients": _compress_reason(made, wishes),
        "zero_stage": "optimiser state"
        + (", gradients" * (made.zero_stage > 1))
        + (", weights" * (made.zero_stage > 2))
        + " divided"
        if made.backend == "deepspeed"
        else "not used: DeepSpeed's only",
        "offload": _offload_reason(made),
        "restarts": "a run that loses a rank goes on from its last checkpoint this often"
        if made.restarts
        else "a run that loses a rank ends; the same command goes on from its last checkpoint",
        "hang_seconds": "a rank that shows no progress for longer ends the run, and is named",
    }


def _compress_reason(made: Plan, wishes: PlanSettings) -> str:
    if made.compress_gradients:
        return "gradients travel as bf16: half the bytes, and the last bits of their sum"
    if wishes.compress_gradients:
        return f"wished, but there is nothing to compress: {made.backend} on {made.ranks} rank sends no gradients"
    return "gradients travel as they are"


def _offload_reason(made: Plan) -> str:
    if made.offload == "none":
        return "everything rests on the device" if made.device == "cuda" else "there is one memory, the CPU's"
    if made.device == "cpu":
        return "wished, but it gains nothing: the CPU's memory is all there is"
    if made.backend == "fsdp" and made.offload == "optimizer":
        return "in the CPU's memory between uses; FSDP takes the parameters along with the optimiser's state"
    return "in the CPU's memory between uses: slower, for models that do not fit otherwise"

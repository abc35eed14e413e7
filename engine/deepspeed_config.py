"""A plan in DeepSpeed's own words: the configuration that `deepspeed.initialize(config=...)` takes. Needs no torch."""

from __future__ import annotations

from typing import Any

from contracts.plan import Plan

# Elements; a buffer of this size is kept. DeepSpeed's own 5e8 would take 2 GB beside the smallest model.
BUCKET = 1 << 24


def deepspeed_config(plan: Plan, *, clip_norm: float | None) -> dict[str, Any]:
    """The configuration as plain values for JSON. `clip_norm` is the largest norm of a step's gradient (None: any)."""
    zero: dict[str, Any] = {
        "stage": plan.zero_stage,
        "overlap_comm": plan.device == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
    }
    pinned = {"device": "cpu", "pin_memory": plan.device == "cuda"}
    if plan.offload != "none":
        zero["offload_optimizer"] = pinned
    if plan.offload == "parameters" and plan.zero_stage == 3:
        zero["offload_param"] = pinned
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": zero,
        # The workload's own optimiser is used. DeepSpeed's would be compiled at first use, and its decay defaults differ.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if plan.precision == "bf16":  # weights stay fp32, as on the other backends
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config

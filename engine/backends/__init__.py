"""How ranks work together: `single` is the base case, every other file is its differences from it."""

from __future__ import annotations

import importlib

from contracts.plan import Plan
from engine.backends.single import Single

NAMES = ("single", "dp", "ddp", "fsdp", "deepspeed", "accelerate")


def make(plan: Plan) -> Single:
    """The backend that a plan names, its process group joined."""
    return getattr(importlib.import_module(f"engine.backends.{plan.backend}"), plan.backend.capitalize())(plan)

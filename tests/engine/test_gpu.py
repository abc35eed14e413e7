"""What only a GPU can show: every backend on one of them through NCCL, its and its precisions.

The batch that fills it is in `test_probing.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contracts.run import RunSpec
from engine.backends import NAMES
from engine.launch import launch
from engine.preflight.lesson import Lesson

MakeSpec = Callable[..., RunSpec]
# What rounding makes of a GPU's other order of sums in a dozen steps of SGD, with AdamW left out: it amplifies it.
TRAIN = {"optimizer": "SGD", "global_batch": 16, "epochs": 2}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]


def trained(spec: RunSpec) -> dict[str, torch.Tensor]:
    """The best weights of a run."""
    launch(spec)
    return load_file(Path(spec.output) / "best.safetensors")


def on_gpu(spec: RunSpec, **plan: Any) -> RunSpec:
    """The same run on a GPU."""
    return replace(spec, plan=replace(spec.plan, device="cuda", **plan))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((value.float() - other[name].float()).abs().max()) for name, value in one.items() if value.numel())


@pytest.fixture
def reference(make_tiny_spec: MakeSpec) -> dict[str, torch.Tensor]:
    """What the CPU learns."""
    return trained(make_tiny_spec("cpu", micro_batch=8, **TRAIN))


def test_segmentation_is_looked_at_on_a_gpu_before_it_trains(make_spec: MakeSpec) -> None:
    lesson = Lesson(on_gpu(make_spec("looked at")))
    assert lesson.before and all(value.device.type == "cuda" for value in lesson.trained.values())


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("micro_batch", [8, 16])
def test_one_gpu_learns_what_the_cpu_learns(
    make_tiny_spec: MakeSpec, reference: dict[str, torch.Tensor], backend: str, micro_batch: int
) -> None:
    spec = make_tiny_spec("gpu", backend=backend, micro_batch=micro_batch, **TRAIN)
    assert distance(reference, trained(on_gpu(spec))) < 1e-3


# What else each may be asked for: the sharding ones cannot scale fp16's losses, and dp's copies cannot be compiled.
OTHER_KINDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"precision": "bf16"}) for name in ("single", "ddp")),
    *((name, {"precision": "fp16"}) for name in ("single", "dp", "ddp", "accelerate")),
    *((name, {"compile": True}) for name in ("single", "ddp", "fsdp", "deepspeed", "accelerate")),
]


@pytest.mark.parametrize(("backend", "plan"), OTHER_KINDS, ids=str)
def test_other_precisions_and_compiled_code_learn_nearly_the_same(
    make_tiny_spec: MakeSpec, reference: dict[str, torch.Tensor], backend: str, plan: dict[str, Any]
) -> None:
    spec = make_tiny_spec("gpu", backend=backend, micro_batch=8, **TRAIN)
    assert distance(reference, trained(on_gpu(spec, **plan))) < 0.05


@pytest.mark.parametrize("ranks", [2])
def test_several_gpus_learn_what_one_learns(
    make_tiny_spec: MakeSpec, reference: dict[str, torch.Tensor], ranks: int
) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"there are {torch.cuda.device_count()} GPUs, {ranks} are needed")
    spec = make_tiny_spec("gpus", ranks=ranks, micro_batch=8, **TRAIN)
    assert distance(reference, trained(on_gpu(spec))) < 1e-3

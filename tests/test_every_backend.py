"""Every backend trains the weights of `single`, however many ranks, and goes on from any other's checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.files import remove
from contracts.run import RunSpec
from engine.backends import NAMES
from engine.checkpoint import Checkpoints
from engine.launch import launch

MakeSpec = Callable[..., RunSpec]
TOLERANCE = 2e-6
# What is tried besides each backend as it is, by the fields of the plan.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {}),
    ("fsdp", {"offload": "optimizer"}),
    ("deepspeed", {"zero_stage": 1}),
    ("deepspeed", {"zero_stage": 3}),
    ("deepspeed", {"zero_stage": 3, "offload": "parameters"}),
]
NAMED = [" ".join([name, *(f"{key}={value}" for key, value in variant.items())]) for name, variant in CASES]


def checkpoints(spec: RunSpec) -> Checkpoints:
    return Checkpoints(Path(spec.output) / "checkpoints", fingerprint=spec.fingerprint)


def last_weights(spec: RunSpec) -> dict[str, torch.Tensor]:
    """The weights in the newest checkpoint of a run."""
    found = checkpoints(spec).load()
    assert found is not None
    return found[1]["weights"]


def go_back(spec: RunSpec, step: int) -> None:
    """Leave a run as it was after `step` steps."""
    for found in checkpoints(spec).found():
        if found.step > step:
            remove(found.folder)
    assert [found.step for found in checkpoints(spec).found()][-1] == step


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def spec_for(make_spec: MakeSpec, backend: str, variant: dict[str, Any], ranks: int, micro_batch: int) -> RunSpec:
    """Five steps on `ranks` ranks, or on as many copies in one process for `dp`, with a checkpoint after each."""
    layout = {**variant, "replicas": ranks} if backend == "dp" else variant
    ranks = 1 if backend == "dp" else ranks
    settings = {"epochs": 1, "checkpoint_minutes": 0, "keep_checkpoints": 9}
    return make_spec("run", backend=backend, ranks=ranks, micro_batch=micro_batch, layout=layout, **settings)


def alone(spec: RunSpec, output: Path) -> RunSpec:
    """The same run on `single`."""
    plan = replace(spec.plan, backend="single", ranks=1, replicas=1, micro_batch=2, accumulation=4, offload="none")
    return replace(spec, plan=plan, output=str(output))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunSpec], RunSpec]:
    """The run of `single`, with all its checkpoints; made once."""
    output = tmp_path_factory.mktemp("single") / "run"

    def made(spec: RunSpec) -> RunSpec:
        run = alone(spec, output)
        if not output.exists():
            launch(run)
        return run

    return made


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES)
def test_two_ranks_train_the_weights_of_single_and_resume_to_the_same_bits(
    make_spec: MakeSpec, reference: Any, backend: str
) -> None:
    spec = spec_for(make_spec, backend, {}, 1 if backend == "single" else 2, 2)
    launch(spec)
    whole = last_weights(spec)
    assert difference(whole, last_weights(reference(spec))) < TOLERANCE
    go_back(spec, 3)
    launch(spec)
    assert difference(last_weights(spec), whole) == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES[1:])
def test_a_checkpoint_of_single_goes_on_on_one_rank_of_every_backend_and_back(
    make_spec: MakeSpec, reference: Any, backend: str
) -> None:
    spec = spec_for(make_spec, backend, {}, 1, 2)
    go_on(spec, reference(spec))
    go_back(spec, 4)
    back = alone(spec, Path(spec.output))
    launch(back)
    assert difference(last_weights(back), last_weights(reference(spec))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "variant"), CASES, ids=NAMED)
def test_a_checkpoint_of_single_goes_on_without_accumulation(
    make_spec: MakeSpec, reference: Any, backend: str, variant: dict[str, Any]
) -> None:
    spec = spec_for(make_spec, backend, variant, 2, 4)
    go_on(spec, reference(spec))


def go_on(spec: RunSpec, other: RunSpec) -> None:
    """Start from the second step of another run, and end with its weights."""
    shutil.copytree(other.output, spec.output)
    go_back(spec, 2)
    launch(spec)
    assert difference(last_weights(spec), last_weights(other)) < TOLERANCE


HALF = [("ddp", {"compress_gradients": True}), ("fsdp", {"precision": "bf16"}), ("deepspeed", {"precision": "bf16"})]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "variant"), HALF, ids=[name for name, _ in HALF])
def test_half_precision_learns_nearly_the_same(
    make_spec: MakeSpec, reference: Any, backend: str, variant: dict[str, Any]
) -> None:
    spec = spec_for(make_spec, backend, {}, 2, 4)
    spec = replace(spec, plan=replace(spec.plan, **variant))
    launch(spec)
    assert 0 < difference(last_weights(spec), last_weights(reference(spec))) < 0.02
    assert all(value.dtype == torch.float32 for value in last_weights(spec).values() if value.is_floating_point())

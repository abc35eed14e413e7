"""Every backend trains the weights of `single`, however many ranks, and goes on from any other's checkpoint.

The tiny workload stands for all in most of it. What exists is tried too: `-k captioning` for one of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from contracts.files import remove
from contracts.plan import Plan
from contracts.records import Records
from contracts.run import RunResult, RunSpec
from contracts.settings import TrainSettings
from contracts.workload import names
from engine.backends import NAMES
from engine.checkpoint import Checkpoints
from engine.planning import plan
from engine.tracking import read_journal
from tests.engine.test_planning import accelerate_config, machine

MakeSpec = Callable[..., RunSpec]
SmallSpec = Callable[..., RunSpec]
Train = Callable[..., RunResult]
TOLERANCE = 2e-6
NUM_STEPS, BATCH = 5, 8
OTHERS = [name for name in names() if name != "segmentation"]
# A checkpoint after every step.
SAVING = {"checkpoint_minutes": 0, "keep_checkpoints": 9}
# What is tried besides each backend as it is, by the fields of the plan.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {}),
    ("fsdp", {"offload": "optimizer"}),
    ("deepspeed", {"zero_stage": 1}),
    ("deepspeed", {"zero_stage": 2, "offload": "optimizer"}),
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


def best_weights(spec: RunSpec) -> dict[str, torch.Tensor]:
    """The averaged weights that scored best in a run."""
    return load_file(Path(spec.output) / "best.safetensors")


def rates(spec: RunSpec) -> dict[int, float]:
    """The learning rate of every step of a run."""
    lines = read_journal(Path(spec.output) / "metrics.jsonl")
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


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


def spec_for(
    make_spec: MakeSpec, backend: str, variant: dict[str, Any], ranks: int, micro_batch: int, **train: Any
) -> RunSpec:
    """Five steps on `ranks` ranks, or on as many copies in one process for `dp`, with a checkpoint after each."""
    layout = {**variant, "replicas": ranks} if backend == "dp" else variant
    ranks = 1 if backend == "dp" else ranks
    settings = {"epochs": 1, **SAVING, **train}
    return make_spec("run", backend=backend, ranks=ranks, micro_batch=micro_batch, layout=layout, **settings)


def alone(spec: RunSpec, output: Path, *, micro_batch: int = 2) -> RunSpec:
    """The same run on `single`, with activations kept."""
    accumulation = spec.settings["train"]["global_batch"] // micro_batch
    cut = {"micro_batch": micro_batch, "accumulation": accumulation, "activation_checkpointing": False}
    return replace(
        spec, plan=replace(spec.plan, backend="single", ranks=1, replicas=1, offload="none", **cut), output=str(output)
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Callable[[RunSpec], RunSpec]:
    """The run of `single`, with all its checkpoints; made once for each workload."""
    folder = tmp_path_factory.mktemp("single")

    def made(spec: RunSpec) -> RunSpec:
        run = alone(spec, folder / spec.workload)
        if not Path(run.output).exists():
            train(run)
        return run

    return made


def learn_the_same(spec: RunSpec, other: RunSpec, train: Train) -> None:
    """Train to the weights of another run and to their average, by the same schedule."""
    train(spec)
    assert rates(spec) == rates(other)
    assert difference(*(with_gradients(last_weights(one)) for one in (spec, other))) < TOLERANCE
    assert difference(*(with_gradients(best_weights(one)) for one in (spec, other))) < TOLERANCE


def with_gradients(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the bias of attention's keys: softmax does not see it, so that its gradient is what rounding leaves of nothing, and Adam
    makes steps of the usual size of that."""
    return {name: value for name, value in weights.items() if not name.endswith(".k_proj.bias")}


def resume_to_the_same_bits(spec: RunSpec, train: Train) -> None:
    """Train from the third step of a run on once more."""
    whole = last_weights(spec)
    go_back(spec, 3)
    train(spec)
    assert difference(last_weights(spec), whole) == 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES)
def test_two_ranks_train_the_weights_of_single_and_resume_to_the_same_bits(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, backend: str
) -> None:
    spec = spec_for(make_tiny_spec, backend, {}, 1 if backend == "single" else 2, 2)
    learn_the_same(spec, reference(spec), train)
    resume_to_the_same_bits(spec, train)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "fsdp", "deepspeed"])
def test_two_ranks_train_segmentation_as_single_does_and_resume_to_the_same_bits(
    make_spec: MakeSpec, reference: Any, train: Train, backend: str
) -> None:
    spec = spec_for(make_spec, backend, {}, 2, 2)
    learn_the_same(spec, reference(spec), train)
    resume_to_the_same_bits(spec, train)


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES[1:])
def test_a_checkpoint_of_single_goes_on_on_one_rank_of_every_backend_with_and_without_accumulation_and_back(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, backend: str
) -> None:
    spec = spec_for(make_tiny_spec, backend, {}, 1, 2)
    go_on(spec, reference(spec), train)
    go_back(spec, 3)
    train(spec_for(make_tiny_spec, backend, {}, 1, BATCH))
    go_back(spec, 4)
    back = alone(spec, Path(spec.output))
    train(back)
    assert difference(last_weights(back), last_weights(reference(spec))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "variant"), CASES, ids=NAMED)
def test_a_checkpoint_of_single_goes_on_without_accumulation(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, backend: str, variant: dict[str, Any]
) -> None:
    """DeepSpeed does so as its own file says, and without a compiler, which it would use if there is one."""
    spec = spec_for(make_tiny_spec, backend, variant, 2, 4)
    go_on(spec, reference(spec), partial(train, planted="own_file" if backend == "deepspeed" else ""))


def go_on(spec: RunSpec, other: RunSpec, train: Train) -> None:
    """Start from the second step of another run, and end with its weights."""
    shutil.copytree(other.output, spec.output)
    go_back(spec, 2)
    train(spec)
    assert difference(last_weights(spec), last_weights(other)) < TOLERANCE


@pytest.mark.slow
def test_what_a_file_of_accelerate_config_plans_trains_the_weights_of_single(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, tmp_path: Path
) -> None:
    spec = spec_for(make_tiny_spec, "accelerate", {}, 2, 2)
    wishes = accelerate_config(tmp_path, distributed_type="MULTI_CPU", mixed_precision="no")
    made = plan(machine(cores=2, memory=24), TrainSettings(global_batch=BATCH, ghost_batch=2), wishes)
    assert (made.backend, made.ranks, made.global_batch) == ("accelerate", 2, BATCH)
    learn_the_same(replace(spec, plan=made), reference(spec), train)


# Each goes on from the checkpoint that the one before it wrote.
PLAIN = [("fsdp", {}), ("deepspeed", {}), ("accelerate", {}), ("dp", {}), ("fsdp", {})]
VARIED = [
    ("deepspeed", {"zero_stage": 1}),
    ("fsdp", {"offload": "optimizer"}),
    ("deepspeed", {"zero_stage": 3}),
    ("deepspeed", {"zero_stage": 2, "offload": "optimizer"}),
    ("ddp", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("links", [PLAIN, VARIED], ids=["plain", "varied"])
def test_one_run_may_go_on_under_one_backend_after_the_other(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, links: list[tuple[str, dict[str, Any]]]
) -> None:
    specs = [spec_for(make_tiny_spec, backend, variant, 2, 2) for backend, variant in links]
    for step, spec in enumerate(specs):
        if step:
            go_back(spec, step)
        assert train(spec).resumed_from == step
    spec = specs[-1]
    assert difference(last_weights(spec), last_weights(reference(spec))) < TOLERANCE
    assert difference(best_weights(spec), best_weights(reference(spec))) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES[1:])
def test_activations_may_be_computed_twice_on_every_backend(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, backend: str
) -> None:
    spec = spec_for(make_tiny_spec, backend, {"activation_checkpointing": True}, 2, 2)
    learn_the_same(spec, reference(spec), train)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ranks share memory on Linux only")
def test_gradients_meet_in_memory_and_where_one_rank_cannot_share_it_in_sockets_with_the_same_bits(
    make_tiny_spec: MakeSpec, train: Train
) -> None:
    shared, sent = (make_tiny_spec(name, ranks=2, **SAVING) for name in ("shared", "sent"))
    train(shared, planted="silent")
    train(sent, planted="apart")
    assert difference(last_weights(shared), last_weights(sent)) == 0
    with pytest.raises(AssertionError, match="gradients were sent"):
        train(
            replace(sent, plan=replace(sent.plan, compress_gradients=True), output=f"{sent.output}-halves"), planted="silent"
        )


HALF = [("ddp", {"compress_gradients": True}), *((name, {"precision": "bf16"}) for name in NAMES[1:])]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "variant"), HALF, ids=[f"{name} {' '.join(variant)}" for name, variant in HALF])
def test_half_precision_learns_nearly_the_same(
    make_tiny_spec: MakeSpec, reference: Any, train: Train, backend: str, variant: dict[str, Any]
) -> None:
    spec = spec_for(make_tiny_spec, backend, {}, 2, 4)
    spec = replace(spec, plan=replace(spec.plan, **variant))
    train(spec)
    assert 0 < difference(last_weights(spec), last_weights(reference(spec))) < 0.02
    assert all(value.dtype == torch.float32 for value in last_weights(spec).values() if value.is_floating_point())


@pytest.fixture
def make_small_spec(small_examples: Any, tmp_path: Path) -> SmallSpec:
    """Five steps of a workload on two ranks of a backend, as its preset `small` says but for their number, a batch of BATCH and what is given."""

    def make(workload: str, backend: str, **train: Any) -> RunSpec:
        settings, examples = small_examples(workload)
        records = Records.open(examples.records, root=examples.raw)
        steps = {"epochs": (NUM_STEPS - 0.5) * BATCH / len(records.split("train")), "global_batch": BATCH, **SAVING, **train}
        short = settings.model_copy(update={"train": settings.train.model_copy(update=steps)})
        # One micro-batch a rank: the sum of two gradients is the same in any order, to the last bit. Adam makes much of it.
        ranks, copies = (1, 2) if backend == "dp" else (2, 1)
        half = BATCH // 2
        plan = Plan(backend, "cpu", ranks, half, copies, 1, 0, 2, "fp32", {}, replicas=copies)  # pyright: ignore[reportArgumentType]
        folders = {"records": str(examples.records), "root": str(examples.raw), "output": str(tmp_path / "run")}
        return RunSpec(workload, short.model_dump(mode="json"), examples.facts, **folders, plan=plan, fingerprint="one")

    return make


@pytest.fixture(scope="module")
def small_reference(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Callable[[RunSpec], RunSpec]:
    """The same run on `single`, in micro-batches of the same size; made once for each network."""
    folder = tmp_path_factory.mktemp("small")

    def made(spec: RunSpec) -> RunSpec:
        name = f"{spec.workload}-{spec.settings['train'].get('window')}"
        single = alone(spec, folder / name, micro_batch=spec.plan.micro_batch)
        if not Path(single.output).exists():
            train(single)
        return single

    return made


# Beside ddp: those whose checkpoints are put together of several ranks' parts, and the original's own way.
ALSO_RESUMED = [("algorithm_distillation", name) for name in ("fsdp", "deepspeed", "accelerate")]


@pytest.mark.slow
@pytest.mark.parametrize("backend", NAMES[1:])
@pytest.mark.parametrize("workload", OTHERS)
def test_two_ranks_train_every_other_workload_as_single_does(
    make_small_spec: SmallSpec, small_reference: Any, train: Train, workload: str, backend: str
) -> None:
    spec = make_small_spec(workload, backend)
    learn_the_same(spec, small_reference(spec), train)
    if backend == "ddp" or (workload, backend) in ALSO_RESUMED:
        resume_to_the_same_bits(spec, train)


# Its blocks run several times in a forward, and its latents meet weights of other layers: what sharding gets wrong.
COMPRESSED = {"window": 2, "latents": 4}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "fsdp", "deepspeed", "accelerate"])
def test_two_ranks_train_compressed_distillation_as_single_does(
    make_small_spec: SmallSpec, small_reference: Any, train: Train, backend: str
) -> None:
    spec = make_small_spec("algorithm_distillation", backend, **COMPRESSED)
    learn_the_same(spec, small_reference(spec), train)
    assert any(".compressor." in name for name in last_weights(spec))
    if backend == "ddp":
        resume_to_the_same_bits(spec, train)


@pytest.mark.slow
def test_compressed_distillation_learns_nearly_the_same_in_half_precision(
    make_small_spec: SmallSpec, small_reference: Any, train: Train
) -> None:
    """Where the weights themselves are halved: latents must not be more precise."""
    spec = make_small_spec("algorithm_distillation", "fsdp", **COMPRESSED)
    single = small_reference(spec)
    train(replace(spec, plan=replace(spec.plan, precision="bf16")))
    assert 0 < difference(last_weights(spec), last_weights(single)) < 0.02


UNFROZEN = {"unfreeze_encoder": 1, "unfreeze_decoder": 1, "unfrozen_rate": 1e-3, "contrast": 0.5, "ghost_batch": 2}


@pytest.mark.slow
def test_two_ranks_draw_by_weights_and_lengths_what_one_draws_and_resume_to_the_same_bits(
    make_small_spec: SmallSpec, train: Train, tmp_path: Path
) -> None:
    """The spec has what captioning trains at most: layers of both base models, the encoder in every step, and a contrast."""
    spec = make_small_spec("captioning", "ddp", length_buckets=3, **UNFROZEN)
    num = len(Records.open(Path(spec.records), root=Path(spec.root)).split("train"))
    np.save(tmp_path / "sampling_weights.npy", np.where(np.arange(num) % 3, 0.5, 3.0))
    spec = replace(spec, sampling_weights=str(tmp_path / "sampling_weights.npy"))
    single, plain = (alone(spec, tmp_path / name, micro_batch=spec.plan.micro_batch) for name in ("single", "plain"))
    train(single)
    learn_the_same(spec, single, train)
    resume_to_the_same_bits(spec, train)
    train(replace(plain, sampling_weights=None))
    assert difference(last_weights(single), last_weights(plain)) > 100 * TOLERANCE
    assert {"encoder", "projection", "decoder"} <= {name.split(".")[1] for name in last_weights(single)}

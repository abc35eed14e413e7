"""What the user wants of the plan, and what of it this machine cannot do: refused at the door, each with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import SlipwayError
from contracts.plan import Backend, Hardware, Plan
from contracts.settings import PlanSettings, TrainSettings
from engine.planning.division import micro_batches
from engine.planning.platforms import Installed

SHARDING = ("fsdp", "deepspeed")
DISTRIBUTED_TYPES = {"NO": None, "MULTI_GPU": False, "MULTI_CPU": True}
AS_WISHED = ("activation_checkpointing", "zero_stage", "offload", "restarts", "hang_seconds")
COST_OF_DP = (
    "slower than ranks: one process computes all copies of the model in turn, and copies gradients and weights in every step"
)
POINTER = "Slipway has these as backends of its own: set plan.backend to single, ddp, fsdp or deepspeed, and leave plan.accelerate_config out"


@dataclass(frozen=True)
class FromAccelerate:
    """What a file of `accelerate config` says: the wishes with it, whether GPUs are left alone, and what was taken from it."""

    wishes: PlanSettings
    use_cpu: bool = False
    taken: str = ""


def with_accelerate_config(wishes: PlanSettings) -> FromAccelerate:
    """The wishes and what their `accelerate_config` adds to them.

    Raises:
        SlipwayError: when the file is not there, asks for what another backend does, or contradicts plan.ranks or plan.precision.
    """
    if wishes.accelerate_config is None:
        return FromAccelerate(wishes)
    path = Path(wishes.accelerate_config)
    config = _read(path)
    kind = str(config.get("distributed_type", "NO"))
    if wishes.backend not in ("auto", "accelerate"):
        raise _refused("accelerate_config", path, f"plan.backend is {wishes.backend}: set it to accelerate or auto")
    if kind not in DISTRIBUTED_TYPES:
        raise _refused("accelerate_config", path, f"its distributed_type is {kind}. {POINTER}")
    if (_count(config, "num_machines", path) or 1) > 1:
        raise _refused(
            "accelerate_config", path, f"it is for {config['num_machines']} machines, this runs on one: {POINTER}"
        )
    if str(config.get("gpu_ids") or "all") != "all":
        raise _refused(
            "accelerate_config",
            path,
            f"its gpu_ids are {config['gpu_ids']}: set them in CUDA_VISIBLE_DEVICES, and gpu_ids to all",
        )
    precision = {"no": "fp32", "none": "fp32"}.get(text := str(config.get("mixed_precision", "no")).lower(), text)
    if precision not in ("fp32", "bf16", "fp16"):
        raise _refused("accelerate_config", path, f"its mixed_precision is {text}: no, bf16 or fp16 can be trained here")
    processes = 1 if kind == "NO" else _count(config, "num_processes", path)
    found = {"backend": "accelerate", "precision": precision} | ({"ranks": processes} if processes else {})
    for name, value in found.items():
        wanted = getattr(wishes, name)
        if wanted not in (None, "auto", value):
            raise _refused(name, wanted, f"{path} says {value}: leave one of them out")
    dynamo = config.get("dynamo_config")
    dynamo = str(dynamo.get("dynamo_backend", "NO") if isinstance(dynamo, dict) else "NO").upper()
    if dynamo not in ("NO", "NONE", "FALSE", "INDUCTOR"):
        raise _refused("accelerate_config", path, f"its dynamo_backend is {dynamo}: INDUCTOR or NO can be trained here")
    update = {**found, "compile": wishes.compile or dynamo == "INDUCTOR"}
    taken = f"{path}: {kind}, num_processes {processes or 'auto'}, mixed_precision {text}"
    return FromAccelerate(wishes.model_copy(update=update), bool(config.get("use_cpu")) or kind == "MULTI_CPU", taken)


def _count(config: dict[str, Any], name: str, path: Path) -> int | None:
    """A number of the file, None where it leaves it open."""
    value = config.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise _refused(
            "accelerate_config", path, f"its {name} is {value!r}: a number is wanted; plan.ranks is auto where it is null"
        )
    return value


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON, the older form, is YAML too
    except OSError as error:
        raise _refused(
            "accelerate_config", path, f"cannot be read ({error.strerror}): write it with `accelerate config`"
        ) from None
    except yaml.YAMLError as error:
        raise _refused("accelerate_config", path, f"is not valid YAML: {error}") from None
    if not isinstance(config, dict):
        raise _refused("accelerate_config", path, "holds no settings: write it with `accelerate config`")
    return config


def as_wished(backend: Backend, how: str) -> str:
    """The reason for a backend that was asked for: `how` its ranks meet (empty: there is one), or what it costs that they do not."""
    more = COST_OF_DP if how and backend == "dp" else how
    return "as plan.backend says" + (f"; {more}" if more else "")


def refuse_impossible(hardware: Hardware, settings: TrainSettings, wishes: PlanSettings, installed: Installed) -> None:
    """Refuse the first wish that cannot be honoured on this machine.

    Raises:
        SlipwayError: with the wish, its value, and what to do instead.
    """
    for name, why in _impossible(hardware, settings, wishes, installed):
        raise _refused(name, getattr(wishes, name), why)


def _refused(name: str, value: object, why: str) -> SlipwayError:
    return SlipwayError(f"plan.{name} = {value} cannot be: {why}")


def _impossible(
    hardware: Hardware, settings: TrainSettings, wishes: PlanSettings, installed: Installed
) -> Iterator[tuple[str, str]]:
    yield from _impossible_backend(hardware, wishes, installed)
    yield from _impossible_division(hardware, settings, wishes)
    yield from _impossible_precision(hardware, wishes)
    yield from _impossible_options(wishes, installed)


def _impossible_backend(hardware: Hardware, wishes: PlanSettings, installed: Installed) -> Iterator[tuple[str, str]]:
    implied = wishes.backend == "auto" and wishes.offload != "none"
    backend, name = ("fsdp", "offload") if implied else (wishes.backend, "backend")
    system, instead = hardware.platform.split()[0], "leave it out" if implied else "use auto, single or dp"
    if backend == "deepspeed" and system != "Linux":
        yield name, f"DeepSpeed is for Linux, this is {system}: use auto or ddp"
    if backend == "deepspeed" and not installed.deepspeed:
        yield name, "DeepSpeed is not installed: `pip install deepspeed`, or use fsdp, which divides as much"
    if backend == "fsdp" and system == "Windows":
        yield name, f"FSDP is not for Windows: {instead if implied else 'use auto, dp or ddp'}"
    if backend in ("ddp", "accelerate", *SHARDING) and not installed.distributed:
        yield name, f"this torch is built without torch.distributed: {instead}"
    if backend in ("ddp", "accelerate", *SHARDING) and installed.ranks_start is False:
        yield name, f"ranks cannot find each other here (`slipway doctor` says why): {instead}"


def _impossible_division(hardware: Hardware, settings: TrainSettings, wishes: PlanSettings) -> Iterator[tuple[str, str]]:
    ghosts, ghost = settings.global_batch // settings.ghost_batch, settings.ghost_batch
    places = len(hardware.devices) or hardware.cores
    ranks = wishes.ranks
    if ranks is not None:
        fitting = [one for one in range(1, min(places, ghosts) + 1) if ghosts % one == 0]
        if wishes.backend == "single" and ranks > 1:
            yield "ranks", "plan.backend = single is one rank: leave ranks out, or set backend to auto"
        if ranks > places:
            kind = "GPUs" if hardware.devices else "cores"
            yield "ranks", f"this machine has {places} {kind}: {_one_of(fitting)}"
        if ghosts % ranks:
            more = -(-settings.global_batch // (ghost * ranks)) * ghost * ranks
            yield (
                "ranks",
                f"a step has {ghosts} ghost batches of {ghost}, which {ranks} ranks cannot share equally: {_one_of(fitting)},"
                f" or train.global_batch {more}",
            )
    if wishes.micro_batch is not None:
        if wishes.micro_batch % ghost:
            near = max(1, wishes.micro_batch // ghost) * ghost
            yield "micro_batch", f"it must be a multiple of train.ghost_batch = {ghost}: {near}, for one"
        choices = micro_batches(settings, ranks=ranks or 1)
        if wishes.micro_batch not in choices:
            share = f"each rank's {settings.global_batch // (ranks or 1)} samples of" if ranks else "the"
            yield "micro_batch", f"it does not divide {share} global batch of {settings.global_batch}: {_one_of(choices)}"


def _one_of(choices: Any) -> str:
    return f"use {' or '.join(map(str, choices))}"


def _impossible_precision(hardware: Hardware, wishes: PlanSettings) -> Iterator[tuple[str, str]]:
    if wishes.precision != "fp16":
        return
    if not hardware.devices:
        yield "precision", "fp16 needs a GPU: use bf16 or fp32 on a CPU"
    sharding = wishes.backend in SHARDING or wishes.offload != "none"
    if sharding:
        name = wishes.backend if wishes.backend in SHARDING else "fsdp"
        yield "precision", f"fp16's loss scaling is not supported with {name}: use bf16, or plan.backend ddp"


def _impossible_options(wishes: PlanSettings, installed: Installed) -> Iterator[tuple[str, str]]:
    backend = wishes.backend
    if wishes.zero_stage != 2 and backend != "deepspeed":
        yield (
            "zero_stage",
            f"it is DeepSpeed's, and plan.backend is {backend}: set that to deepspeed, or leave zero_stage out",
        )
    if wishes.offload != "none" and backend not in ("auto", *SHARDING):
        yield "offload", f"only fsdp and deepspeed can, and plan.backend is {backend}: set that to one of them, or to auto"
    if wishes.offload == "parameters" and backend == "deepspeed" and wishes.zero_stage != 3:
        yield "offload", "parameters rest elsewhere in ZeRO stage 3 only: set plan.zero_stage to 3, or offload to optimizer"
    if wishes.compress_gradients and backend in ("dp", *SHARDING):
        yield (
            "compress_gradients",
            f"only ddp and accelerate can, and plan.backend is {backend}: set that to ddp, or leave it out",
        )
    if wishes.compile and backend == "dp":
        yield (
            "compile",
            "dp calls its copies in turn, which cannot be compiled: set plan.backend to ddp, or leave compile out",
        )
    if wishes.compile and not installed.compiler:
        what = "Triton (GPU) or a C++ compiler such as g++ (CPU; on Windows, Visual Studio's cl)"
        yield "compile", f"torch.compile needs {what}, which is not here: install it, or leave compile out"


def unmet(made: Plan, wishes: PlanSettings) -> str | None:
    """The first wish, as "name value", that a plan does not honour; None where it honours all."""
    wishes = with_accelerate_config(wishes).wishes
    held = {**vars(made), "ranks": made.replicas if made.backend == "dp" else made.ranks}
    for name in ("backend", "ranks", "micro_batch", "precision", *AS_WISHED):
        wanted = getattr(wishes, name)
        if wanted not in (None, "auto", held[name]):
            return f"{name} {wanted}"
    if wishes.compile and not made.compile:  # a plan that was measured may compile without being asked
        return "compile True"
    if wishes.compress_gradients != made.compress_gradients and made.ranks > 1:
        return f"compress_gradients {wishes.compress_gradients}"
    return None

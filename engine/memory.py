"""Memory as training sees it: what it takes, and running out of it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_iter

from contracts.records import Records
from contracts.run import RunSpec
from contracts.settings import Settings, validate
from contracts.workload import Workload, load
from engine.backends.single import PRECISIONS
from engine.feeding import feed
from engine.layers import recompute_activations
from engine.normalization import GhostStatistics
from engine.planning.footprint import LIMIT, Footprint, memory_limit
from engine.stream import Stream

# Of the device's memory; above it, the next batch that is a little larger may be too large.
TIGHT = 0.9
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def is_tight(device: torch.device) -> bool:
    """Whether training has come close to filling the device. Always false on a CPU, whose memory is shared and swapped."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return (
        torch.cuda.max_memory_reserved(device) > TIGHT * (free + torch.cuda.memory_reserved(device)) or free < 0.02 * total
    )


def release(device: torch.device) -> None:
    """Give what is cached back to the device, so that smaller pieces find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def limited(device: torch.device) -> AbstractContextManager[Any]:
    """Round everything that trains on `device`: more than SLIPWAY_MEMORY_LIMIT bytes raise torch.OutOfMemoryError.

    On a GPU its own allocator is told, on a CPU the living tensors are counted. Without the variable it costs nothing.
    """
    limit = memory_limit()
    if limit is None:
        return nullcontext()
    return _limited_allocator(device, limit) if device.type == "cuda" else LiveBytes(limit=limit)


@contextmanager
def _limited_allocator(device: torch.device, limit: int) -> Iterator[None]:
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of the tensors that operations have seen and that still live, in the backward too.

    Views share their storage and count once. What C++ keeps for itself (a kernel's workspace) is not seen.

    Raises (inside):
        torch.OutOfMemoryError: by the operation that goes beyond `limit`; what it made is gone by then.
    """

    def __init__(self, *, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):  # a sharded tensor, say: it comes again in its parts
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        for value in tree_iter((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self._see(value.untyped_storage())
        if self.limit is not None and self.live > self.limit:
            raise torch.OutOfMemoryError(f"out of memory: {self.live} bytes live, {self.limit} are allowed by {LIMIT}")
        self.peak = max(self.peak, self.live)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        # By id, as the storage's Python object lives exactly as long as its memory.
        known, size = id(storage), storage.nbytes()
        if known in self._seen or not size:
            return

        def forget(gone: Any) -> None:
            self.live -= size
            del self._seen[known]

        self._seen[known] = weakref.ref(storage, forget)
        self.live += size


def model_footprint(
    build: Callable[[], nn.Module], make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], *, averages: bool
) -> Footprint:
    """What a model rests on: weights, optimiser's state, average and the copy that is scored; no activations.

    It is built without memory (on torch's meta device) if its code lets it, otherwise really, which a note says.
    """
    try:
        with torch.device("meta"):
            found = _resting(build(), make_optimizer)
        note = "sizes from a model without memory (meta device)"
    except Exception as error:  # a model's own code may do anything with values that are not there
        found = _resting(build(), make_optimizer)
        note = f"sizes from a model built for it, as it cannot be on the meta device ({str(error).splitlines()[0]})"
    return replace(found, average=found.average if averages else 0, notes=(note,))


def _resting(objective: nn.Module, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Footprint:
    optimizer = make_optimizer(objective)
    trained = [value for value in objective.parameters() if value.requires_grad]
    others = [value for value in objective.parameters() if not value.requires_grad]
    for value in trained:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    states = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
    weights, buffers = _bytes(trained), _bytes(objective.buffers())
    frozen = _bytes(others) + buffers
    return Footprint(weights, frozen, _bytes(states), average=weights + buffers, validation=weights + frozen)


def _bytes(tensors: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tensors)


def footprint(spec: RunSpec) -> Footprint:
    """The memory that a run's model takes; a sample's activations as measured on the CPU with one and two ghost batches."""
    workload = load(spec.workload)
    settings = validate(workload.Settings, spec.settings, where=spec.workload)
    found = model_footprint(
        lambda: workload.build(settings, spec.facts, pretrained=False),
        lambda objective: workload.optimizer(objective, settings),
        averages=settings.train.ema_decay > 0,
    )
    few, many = settings.train.ghost_batch, 2 * settings.train.ghost_batch
    peaks = _peaks(spec, workload, settings, (few, many))
    sample = max(0, (peaks[many] - peaks[few]) // (many - few))
    workspace = max(0, peaks[few] - few * sample - 2 * found.weights - found.frozen)
    note = f"a sample's activations from batches of {few} and {many} on the CPU"
    return replace(found, sample=sample, workspace=workspace, notes=(*found.notes, note))


def _peaks(spec: RunSpec, workload: Workload, settings: Settings, sizes: tuple[int, ...]) -> dict[int, int]:
    """The most bytes that live in a forward and backward of real batches of these sizes, weights and gradients included."""
    records = Records.open(Path(spec.records), root=Path(spec.root)).split("train")
    dataset = workload.dataset(records, settings, spec.facts, training=True)
    objective = workload.build(settings, spec.facts, pretrained=False).train()
    if spec.plan.activation_checkpointing:
        recompute_activations(objective)
    GhostStatistics(objective, ghost_batch=settings.train.ghost_batch, num_ghosts=1)
    half = None if spec.plan.precision == "fp32" else PRECISIONS["bf16"]  # as large as fp16, which CPUs do not train
    peaks: dict[int, int] = {}
    for size in (sizes[0], *sizes):  # once more at first: caches fill
        stream = Stream(len(records), size, 1, settings.train.seed)
        plan = replace(spec.plan, device="cpu", ranks=1, workers=0, micro_batch=size, accumulation=1)
        _, batch = next(feed(dataset, stream, plan, rank=0, first_step=0, beacons=Path(spec.output)))
        objective.zero_grad()
        with LiveBytes() as counted, torch.autocast("cpu", dtype=half, enabled=half is not None):
            objective(batch)["loss"].backward()
        peaks[size] = counted.peak
    return peaks


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had so far: of tensors on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage would count the launcher's memory at the moment of the start, too
        status = Path("/proc/self/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most << 10 if sys.platform == "linux" else most

"""Weights as one safetensors file: every tensor of a module but those of its base models, and one that has two names (tied
embeddings) once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete
from contracts.settings import Settings
from contracts.workload import Facts, HasBases, Workload

# Where a file's header has the hash of its tensors.
HASH = "sha256"


def save_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict, atomically, with the hash of its tensors in the header."""
    plain = {name: value.detach().cpu().contiguous() for name, value in distinct(tensors).items()}
    with replace_when_complete(path) as temporary:
        save_file(plain, temporary, metadata={HASH: _sha256(plain)})


def distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the other names of tensors that have several."""
    first = {_place(value): name for name, value in reversed([*tensors.items()])}
    return {name: value for name, value in tensors.items() if first[_place(value)] == name}


def whole_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, which have the hash in its header, if there is one: files that others wrote have none.

    Raises:
        SlipwayError: when the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            names, named = file.keys(), (file.metadata() or {}).get(HASH)
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise SlipwayError(_damaged(path, str(error))) from None
    if named not in (None, _sha256(tensors)):
        raise SlipwayError(_damaged(path, "its tensors do not have the sha256 in its header"))
    return tensors


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}): restore it, or remove {path.parent} and train again"


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def frozen_bases(workload: Workload, objective: nn.Module) -> frozenset[str]:
    """The names of the weights that need not be saved: those of base models that do not train."""
    parts = tuple(f"{name}." for name in workload.bases()) if isinstance(workload, HasBases) else ()
    parameters = objective.named_parameters(remove_duplicate=False)
    return frozenset(name for name, value in parameters if name.startswith(parts) and not value.requires_grad)


def rebuilt(workload: Workload, settings: Settings, facts: Facts, path: Path) -> nn.Module:
    """An objective with the weights in `path`, which `save_weights` wrote of one of the same workload, and its base models'.

    Raises:
        ValueError: when names or shapes are not the objective's.
        SlipwayError: when the file is damaged.
    """
    objective = workload.build(settings, facts, pretrained=isinstance(workload, HasBases))
    read_weights(objective, path, but=frozen_bases(workload, objective))
    return objective


def read_weights(module: nn.Module, path: Path, *, but: Collection[str] = ()) -> None:
    """Load what `save_weights` wrote of the same module; weights named in `but` may be left out.

    Raises:
        ValueError: when names or shapes are not the module's.
        SlipwayError: when the file is damaged.
    """
    tensors = whole_weights(path)
    try:
        missing, unknown = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    own = module.state_dict()
    given = {_place(own[name]) for name in tensors if name in own}
    lost = [name for name in missing if _place(own[name]) not in given and name not in but]
    if unknown or lost:
        raise ValueError(f"unknown {', '.join(unknown[:3]) or 'none'}, missing {', '.join(lost[:3]) or 'none'}")


def weight_bytes(module: nn.Module) -> int:
    """Of all its tensors, one that has two names once."""
    return sum(value.nbytes for value in {_place(value): value for value in module.state_dict().values()}.values())


def _place(tensor: torch.Tensor) -> object:
    """The same for two tensors that are one; empty ones are never."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)

"""Weights as one safetensors file: every tensor of a module, and one that has two names (tied embeddings) once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from contracts.files import replace_when_complete


def save_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict, atomically."""
    first = {_place(value): name for name, value in reversed([*tensors.items()])}
    once = {name: value for name, value in tensors.items() if first[_place(value)] == name}
    with replace_when_complete(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in once.items()}, temporary)


def read_weights(module: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote of the same module.

    Raises:
        ValueError: when names or shapes are not the module's.
    """
    tensors = load_file(path)
    try:
        missing, unknown = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    own = module.state_dict()
    given = {_place(own[name]) for name in tensors if name in own}
    lost = [name for name in missing if _place(own[name]) not in given]
    if unknown or lost:
        raise ValueError(f"unknown {', '.join(unknown[:3]) or 'none'}, missing {', '.join(lost[:3]) or 'none'}")


def _place(tensor: torch.Tensor) -> object:
    """The same for two tensors that are one; empty ones are never."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)

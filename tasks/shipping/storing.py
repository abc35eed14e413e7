"""ONNX models as files: one alone or, where the weights are large, with a second beside it that holds them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.files import remove

if TYPE_CHECKING:
    import onnx

# Bytes of weights. A message of protobuf ends at 2 GiB, and tools copy whole ones.
LARGEST = 1_500_000_000


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path`, weights beyond `LARGEST` to `data_of(path)`. The model is used up: its weights may be gone then."""
    import onnx

    data = data_of(path)
    remove(data)  # onnx would append to it
    large = sum(one.ByteSize() for one in model.graph.initializer) > LARGEST
    onnx.save(model, path, save_as_external_data=large, location=data.name)


def data_of(path: Path) -> Path:
    """Where the weights of a large model lie: the file says so by this name, so that both move together."""
    return path.with_name(f"{path.name}.data")


def copy_model(source: Path, target: Path) -> None:
    """Copy a model with all that belongs to it; one whose weights lie beside it keeps its name."""
    shutil.copyfile(source, target)
    if data_of(source).exists():
        assert source.name == target.name, "the file names the one that holds its weights"
        shutil.copyfile(data_of(source), data_of(target))


def with_data(artifact: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """artifact.json's content with `data`, the file of its weights, for each graph that has one in `home`."""
    graphs = {name: {key: value for key, value in one.items() if key != "data"} for name, one in artifact["graphs"].items()}
    for one in graphs.values():
        data = data_of(Path(one["file"]))
        if (home / data).exists():
            one["data"] = data.as_posix()
    return {**artifact, "graphs": graphs}


def num_bytes(home: Path) -> int:
    """Size of an artifact's ONNX files, weights included."""
    return sum(path.stat().st_size for path in (home / "graphs").glob("*.onnx*"))

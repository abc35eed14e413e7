"""A shipped model opened with ONNX Runtime alone: an artifact's folder in, `run("graph", **arrays)` out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.settings import Settings, validate

if TYPE_CHECKING:
    import onnxruntime

    from contracts.workload import Arrays

# In the order in which they are preferred.
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# Their activations are scaled by the largest of the whole batch: what is found for a row would depend on those beside it.
ROW_BY_ROW = ("int8_dynamic",)


@dataclass(frozen=True)
class Artifact:
    """What artifact.json says: whose `graphs` lie in `folder`, and with which settings and facts they are used."""

    folder: Path
    workload: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    graphs: Mapping[str, Mapping[str, Any]]
    recipe: str

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """The artifact in `folder`.

        Raises:
            SlipwayError: when artifact.json is missing, is no JSON, or lacks something.
        """
        path = Path(folder) / "artifact.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SlipwayError(f"{path} is missing: give the folder of an exported, quantized or published model") from None
        except ValueError as error:
            raise SlipwayError(f"{path} is not valid JSON ({error}): export or download the model again") from None
        wanted = ("workload", "settings", "facts", "graphs", "recipe")
        missing = [key for key in wanted if key not in value] if isinstance(value, dict) else list(wanted)
        if missing:
            raise SlipwayError(f"{path} lacks {', '.join(missing)}: it does not describe a Slipway model")
        return cls(Path(folder), **{key: value[key] for key in wanted})

    def settings_read(self) -> Settings:
        """The settings that the model was made with.

        Raises:
            SlipwayError: when this version of Slipway does not know its workload or one of its settings.
        """
        try:
            return validate(workloads.load(self.workload).Settings, self.settings, where=self.workload)
        except SlipwayError as error:
            raise SlipwayError(f"{self.folder}/artifact.json was made by another version of Slipway: {error}") from None

    def file(self, graph: str) -> Path:
        """The ONNX file of a graph.

        Raises:
            SlipwayError: when there is no such graph, or its file, or the one of its weights where it has one, is missing or
                lies outside the artifact's folder.
        """
        if graph not in self.graphs:
            raise SlipwayError(f"{self.folder} has no graph {graph!r}; it has: {', '.join(self.graphs)}")
        described = self.graphs[graph]
        if "data" in described:
            self._inside(described["data"])
        return self._inside(described["file"])

    def _inside(self, file: str) -> Path:
        path = self.folder / file
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise SlipwayError(f"{self.folder}/artifact.json names the file {file!r}, outside its folder: refused")
        if not path.is_file():
            raise SlipwayError(f"{path} is missing, though artifact.json names it: export or download the model again")
        return path


class Runtime:
    """An opened artifact, called as `runtime("graph", **arrays)`; safe to call from several threads."""

    def __init__(self, artifact: Artifact, *, threads: int, providers: Sequence[str]) -> None:
        self.artifact, self.threads = artifact, threads
        self._wanted = list(providers)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._opening = Lock()

    def __call__(self, graph: str, /, **arrays: np.ndarray) -> Arrays:
        """The graph's outputs by name. What stands in a row of a batch is the same alone and among others, whatever the recipe.

        Raises:
            SlipwayError: for a graph or an input that does not exist, or an array of the wrong type or shape.
        """
        session = self.session(graph)
        self._check(graph, arrays)
        names = list(self.artifact.graphs[graph]["outputs"])
        parts = [session.run(names, part) for part in self._parts(graph, arrays)]
        joined = (values[0] if len(values) == 1 else np.concatenate(values) for values in zip(*parts, strict=True))
        return dict(zip(names, map(np.asarray, joined), strict=True))

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """The session of a graph, opened at its first use."""
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def open_all(self) -> Runtime:
        """Open every graph now, so that what is wrong with a file is said before work starts. Returns itself."""
        for graph in self.artifact.graphs:
            self.session(graph)
        return self

    @property
    def providers(self) -> dict[str, str]:
        """Where each opened graph really runs."""
        return {name: session.get_providers()[0] for name, session in self._sessions.items()}

    def _open(self, graph: str) -> onnxruntime.InferenceSession:
        import onnxruntime

        path = self.artifact.file(graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores of everybody else: on a busy machine two were slower than one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=self._wanted)
        except Exception as error:  # ONNX Runtime's exceptions share no class below Exception
            raise SlipwayError(
                f"{path} ({path.stat().st_size:,} bytes) cannot be opened by ONNX Runtime: {error}. "
                "Export or download the model again"
            ) from None
        if session.get_providers()[0] != self._wanted[0]:
            warnings.warn(f"{graph} runs on {session.get_providers()[0]}: {self._wanted[0]} could not be used", stacklevel=3)
        return session

    def _parts(self, graph: str, arrays: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        """What is computed at once: all, or a row alone where the recipe wants that and the graph takes any number of rows."""
        first = {one["shape"][0] if one["shape"] else 0 for one in self.artifact.graphs[graph]["inputs"].values()}
        sizes = {value.shape[:1] for value in arrays.values()}
        if self.artifact.recipe not in ROW_BY_ROW or len(first) != 1 or len(sizes) != 1 or not isinstance(first.pop(), str):
            return [arrays]
        [(num,)] = sizes
        return [{name: value[row : row + 1] for name, value in arrays.items()} for row in range(num)] or [arrays]

    def _check(self, graph: str, arrays: Mapping[str, np.ndarray]) -> None:
        inputs = self.artifact.graphs[graph]["inputs"]
        if set(arrays) != set(inputs):
            raise SlipwayError(f"the graph {graph!r} takes {', '.join(inputs)}, not {', '.join(arrays) or 'nothing'}")
        for name, wanted in inputs.items():
            array, shape = arrays[name], wanted["shape"]
            fits = array.ndim == len(shape) and all(
                size == wish for size, wish in zip(array.shape, shape, strict=True) if isinstance(wish, int)
            )
            if not fits or str(array.dtype) != wanted["dtype"]:
                raise SlipwayError(
                    f"{name} of the graph {graph!r} must be {wanted['dtype']} {shape}, not {array.dtype} {list(array.shape)}"
                )


def open_run(folder: Path, *, threads: int | None = None, providers: Sequence[str] | None = None) -> Runtime:
    """The model in an artifact's folder, ready to be called as `run("graph", **arrays)`.

    Args:
        folder: holds artifact.json and the graphs it names.
        threads: of one graph on the CPU; None takes every core that this process may use.
        providers: of ONNX Runtime, in order of preference; None takes CUDA where this build has it, and the CPU.

    Raises:
        SlipwayError: when the artifact is missing, incomplete or corrupt, or a provider is not in this build.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = [name for name in PROVIDERS if name in there] if providers is None else list(providers)
    if absent := [name for name in wanted if name not in there]:
        raise SlipwayError(f"this build of ONNX Runtime has no {', '.join(absent)}; it has: {', '.join(there)}")
    return Runtime(Artifact.read(folder), threads=threads or num_cores(), providers=wanted).open_all()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

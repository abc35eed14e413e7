"""The one graph, read from dvc.yaml through DVC: which stages a workload has, and in which order they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.errors import SlipwayError


@dataclass(frozen=True)
class Stage:
    """One stage of one workload. `address` is DVC's name for it (train@segmentation); `before` are the names of the stages
    that must have ended; `metrics` the files with numbers that it writes, relative to the project's folder."""

    address: str
    name: str
    before: tuple[str, ...]
    retries: int
    timeout_seconds: float | None
    metrics: tuple[str, ...] = ()
    is_root: bool = field(default=False)


def read_graph(workload: str | None) -> tuple[str, list[Stage]]:
    """The workload (None: the first that params.yaml lists) and its stages in the order in which they run.

    Raises:
        SlipwayError: when there is no pipeline here, it cannot be read, or it has no such workload.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not Path("dvc.yaml").is_file():
        raise SlipwayError(f"{Path.cwd()} holds no dvc.yaml: run from the project's folder")
    try:
        with Repo() as repo:
            stages = [stage for stage in repo.index.stages if "@" in (stage.addressing or "")]
            graph = repo.index.graph
            workloads = list(dict.fromkeys(_split(stage)[1] for stage in stages))
            if not workloads:
                raise SlipwayError(
                    "dvc.yaml defines no stage for a workload: `workloads` in params.yaml lists those that run"
                )
            chosen = workload or workloads[0]
            if chosen not in workloads:
                raise SlipwayError(
                    f"no stage of dvc.yaml is for {chosen!r}; `workloads` in params.yaml lists {', '.join(workloads)}"
                )
            mine = [stage for stage in stages if _split(stage)[1] == chosen]
            found = {_split(stage)[0]: _stage(stage, graph, mine) for stage in mine}
    except DvcException as error:
        raise SlipwayError(f"DVC cannot read the pipeline: {error}") from None
    return chosen, in_order(found)


def unchanged(address: str) -> bool:
    """Whether DVC would skip the stage: its command, dependencies, parameters and outputs are those of dvc.lock."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo, repo.lock:
            return not next(stage for stage in repo.index.stages if stage.addressing == address).changed()
    except DvcException:
        return False  # another DVC is at work, or `dvc repro` will say what is wrong


def _split(stage: Any) -> tuple[str, str]:
    name, _, workload = stage.addressing.rpartition("@")
    return name, workload


def _stage(stage: Any, graph: Any, mine: list[Any]) -> Stage:
    name, _ = _split(stage)
    meta: Mapping[str, Any] = stage.meta or {}
    needed = [_split(other)[0] for other in graph.successors(stage) if other in mine]
    after = meta.get("after", [])
    before = [*needed, *([after] if isinstance(after, str) else after)]
    minutes = meta.get("timeout_minutes")
    return Stage(
        address=stage.addressing,
        name=name,
        before=tuple(sorted(set(before))),
        retries=int(meta.get("retries", 0)),
        timeout_seconds=None if minutes is None else 60.0 * minutes,
        metrics=tuple(str(out.def_path) for out in stage.outs if out.metric),
        is_root=not needed,
    )


def in_order(stages: Mapping[str, Stage]) -> list[Stage]:
    """Stages so that each comes after those it names in `before`; otherwise as dvc.yaml lists them.

    Raises:
        SlipwayError: when `after` names a stage that does not exist, or stages wait for each other.
    """
    for stage in stages.values():
        if missing := sorted(set(stage.before) - set(stages)):
            raise SlipwayError(
                f"dvc.yaml: {stage.name} comes after {', '.join(missing)}, which is no stage of this workload"
            )
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(stages):
        ready = next((one for one in stages.values() if one.name not in ordered and set(one.before) <= set(ordered)), None)
        if ready is None:
            raise SlipwayError(
                f"dvc.yaml: these stages wait for each other: {', '.join(sorted(set(stages) - set(ordered)))}"
            )
        ordered[ready.name] = ready
    return list(ordered.values())

"""The flow `retrain`: the same pipeline on a schedule, from the newest data. Publishing refuses a model that is no better."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.train_pipeline import run_pipeline


@flow(name="retrain", persist_result=False)
def retrain(workload: str | None = None) -> Any:
    """Fetch the data again and redo what it changes: where the data are the same, nothing else runs.

    Args:
        workload: which one of those that params.yaml lists under `workloads`; the first of them if not given.
    """
    return run_pipeline(workload, lambda stages: [stage.name for stage in stages if stage.is_root])

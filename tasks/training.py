"""The training run of a workload as params.yaml and the earlier stages describe it, and what names it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.plan import Plan
from contracts.records import Records, read_facts
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import code_of
from tasks.stage import SAMPLING_WEIGHTS, folder


def training_run(workload: str, settings: Settings, plan: Plan) -> RunSpec:
    """The run, its folder under runs/ named by its fingerprint.

    Raises:
        SlipwayError: when the records, or what is prepared from them, are missing.
    """
    records = Records.open(folder("parse", workload), root=folder("download", workload) / "raw")
    facts = known_facts(workload)
    weights = folder("prepare", workload) / SAMPLING_WEIGHTS
    weights = weights if weights.is_file() else None
    fingerprint = run_fingerprint(workload, settings, records, facts, weights)
    return RunSpec(
        workload=workload,
        settings=settings.model_dump(mode="json"),
        facts=facts,
        records=str(records.path.parent.resolve()),
        root=str(records.root.resolve()),
        output=str((Path("runs") / workload / fingerprint[:12]).resolve()),
        plan=plan,
        fingerprint=fingerprint,
        sampling_weights=str(weights.resolve()) if weights else None,
    )


def known_facts(workload: str) -> dict[str, Any]:
    """What is known of the data before training: the facts of `parse` and of `prepare`."""
    path = folder("prepare", workload) / "facts.json"
    if not path.is_file():
        raise SlipwayError(
            f"{path} is missing: run the prepare stage first (dvc repro, or python -m tasks.prepare {workload})"
        )
    return {**read_facts(folder("parse", workload)), **read_json(path)}


def run_fingerprint(workload: str, settings: Settings, records: Records, facts: dict[str, Any], weights: Path | None) -> str:
    """Names a run by what decides what it learns: training settings, data, how often each record is drawn, and the workload's
    code, not the hardware."""
    train = settings.train.model_dump(mode="json", exclude={"checkpoint_minutes", "keep_checkpoints"})
    drawn = hashlib.blake2b(weights.read_bytes(), digest_size=16).hexdigest() if weights else None
    text = json.dumps([workload, train, facts, records.fingerprint, drawn, code_of(workload)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

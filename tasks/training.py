"""The training run of a workload as params.yaml and the earlier stages describe it, and what names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
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

# Settings of train that decide nothing of what is learnt.
NOT_LEARNT = ("checkpoint_minutes", "keep_checkpoints")


def training_run(workload: str, settings: Settings, plan: Plan) -> RunSpec:
    """The run, its folder under runs/ named by its fingerprint.

    Raises:
        SlipwayError: when the records, or what is prepared from them, are missing.
    """
    records = Records.open(folder("parse", workload), root=folder("download", workload) / "raw")
    weights = folder("prepare", workload) / SAMPLING_WEIGHTS
    spec = RunSpec(
        workload=workload,
        settings=settings.model_dump(mode="json"),
        facts=known_facts(workload),
        records=str(records.path.parent.resolve()),
        root=str(records.root.resolve()),
        output="",
        plan=plan,
        fingerprint="",
        sampling_weights=str(weights.resolve()) if weights.is_file() else None,
    )
    fingerprint = run_fingerprint(workload, identity(spec))
    return replace(spec, output=str((Path("runs") / workload / fingerprint[:12]).resolve()), fingerprint=fingerprint)


def known_facts(workload: str) -> dict[str, Any]:
    """What is known of the data before training: the facts of `parse` and of `prepare`."""
    path = folder("prepare", workload) / "facts.json"
    if not path.is_file():
        raise SlipwayError(
            f"{path} is missing: run the prepare stage first (dvc repro, or python -m tasks.prepare {workload})"
        )
    return {**read_facts(folder("parse", workload)), **read_json(path)}


def identity(spec: RunSpec) -> dict[str, dict[str, Any]]:
    """What decides what a run learns: training settings, data, how often each record is drawn, and the workload's code, not the
    hardware."""
    weights = Path(spec.sampling_weights) if spec.sampling_weights else None
    return {
        "settings": {name: value for name, value in spec.settings["train"].items() if name not in NOT_LEARNT},
        "data": {
            "facts": spec.facts,
            "records": Records.open(Path(spec.records), root=Path(spec.root)).fingerprint,
            "sampling weights": hashlib.blake2b(weights.read_bytes(), digest_size=16).hexdigest() if weights else None,
        },
        "code": code_of(spec.workload),
    }


def run_fingerprint(workload: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Names a run by its `identity`."""
    text = json.dumps([workload, known["settings"], *known["data"].values(), known["code"]], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

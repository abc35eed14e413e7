"""The stage `train`: hands a run to the engine and puts what it learnt where the next stages look for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from contracts.files import replace_when_complete
from contracts.records import Records, read_facts
from contracts.run import RunResult, RunSpec
from contracts.settings import Settings
from contracts.workload import ROOT, load, settings_of
from tasks.plan import current_plan
from tasks.stage import folder, stage_main


def run(workload: str) -> None:
    """Train `workload` as params.yaml says, going on from an interrupted run of the same settings and data."""
    settings = settings_of(workload)
    records = Records.open(folder("parse", workload), root=folder("download", workload) / "raw")
    facts = read_facts(folder("parse", workload))
    fingerprint = run_fingerprint(workload, settings, records, facts)
    output = Path("runs") / workload / fingerprint[:12]
    spec = RunSpec(
        workload=workload,
        settings=settings.model_dump(mode="json"),
        facts=facts,
        records=str(records.path.parent.resolve()),
        root=str(records.root.resolve()),
        output=str(output.resolve()),
        plan=current_plan(workload, settings),
        fingerprint=fingerprint,
    )
    from engine.launch import launch

    result = launch(spec)
    collect(spec, result, target=folder("train", workload))
    metric = load(workload).metric.name
    print(
        f"trained {result.steps} steps ({result.epochs:.1f} epochs) in {result.seconds:.0f} s, {result.samples_per_second:.1f} samples/s; "
        f"best {metric} on val {result.metrics[metric]:.4f} after epoch {result.best_epoch}"
    )


def run_fingerprint(workload: str, settings: Settings, records: Records, facts: dict[str, Any]) -> str:
    """Names a run by what decides its weights: training settings, data and the workload's code, not the hardware."""
    train = settings.train.model_dump(mode="json", exclude={"checkpoint_minutes", "keep_checkpoints"})
    text = json.dumps([workload, train, facts, records.fingerprint, code_of(workload)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def code_of(workload: str) -> dict[str, str]:
    """The hash of each of a workload's source files."""
    here = ROOT / "workloads" / workload
    files = sorted(path for path in here.rglob("*.py"))
    return {path.relative_to(here).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def collect(spec: RunSpec, result: RunResult, *, target: Path) -> None:
    """Put the weights, the newest checkpoint and the curves of a finished run into `target`, all or nothing."""
    from engine.tracking import write_curves, write_validation

    output = Path(spec.output)
    with replace_when_complete(target) as temporary:
        model = temporary / "model"
        model.mkdir(parents=True)
        shutil.copy2(output / "best.safetensors", model / "weights.safetensors")
        newest = max((output / "checkpoints").glob("step-*"))
        shutil.copytree(newest, model / "checkpoint")
        portable(spec).write(model / "spec.json")
        _save_for_the_ecosystem(spec, model)
        shutil.copy2(output / "metrics.jsonl", temporary / "metrics.jsonl")
        write_curves(output / "metrics.jsonl", temporary / "curves.csv")
        write_validation(output / "metrics.jsonl", temporary / "validation.csv", metric=load(spec.workload).metric.name)
        result.write(temporary / "result.json")
        spec.plan.write(temporary / "plan.json")


def portable(spec: RunSpec) -> RunSpec:
    """The spec without the paths of this machine: they would differ in every clone, and with them the stage's hash."""
    here = Path.cwd().resolve()
    paths = {name: os.path.relpath(getattr(spec, name), here) for name in ("records", "root", "output")}
    return RunSpec(**{**vars(spec), **{name: Path(path).as_posix() for name, path in paths.items()}})


def _save_for_the_ecosystem(spec: RunSpec, model: Path) -> None:
    """The files that the model's own tools open, from the best weights and from the last."""
    import torch
    from safetensors.torch import load_file

    from engine.parts import load_weights

    workload = load(spec.workload)
    settings = workload.Settings.model_validate(spec.settings)
    objective = workload.build(settings, spec.facts, pretrained=False)
    state = torch.load(model / "checkpoint" / "state.pt", map_location="cpu", weights_only=True)
    last = state["average"]["tensors"] or state["weights"]
    for name, tensors in {"best": load_file(model / "weights.safetensors"), "last": last}.items():
        load_weights(objective, tensors)
        workload.save(objective, model, settings, spec.facts, name=name)


if __name__ == "__main__":
    stage_main(run)

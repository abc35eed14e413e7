"""The stage `train`: hands a run to the engine and puts what it learnt where the next stages look for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from contracts.files import replace_when_complete
from contracts.run import RunResult, RunSpec
from contracts.workload import load, settings_of
from tasks.plan import current_plan
from tasks.preflight import before_training
from tasks.stage import folder, stage_main
from tasks.training import training_run
from tasks.unfinished import announce


def run(workload: str) -> None:
    """Train `workload` as params.yaml says, going on from an interrupted run of the same settings and data."""
    settings = settings_of(workload)
    spec = training_run(workload, settings, current_plan(workload, settings))
    announce(spec)
    before_training(spec, settings)
    from engine.launch import launch

    result = launch(spec)
    collect(spec, result, target=folder("train", workload))
    metric = load(workload).metric.name
    print(
        f"trained {result.steps} steps ({result.epochs:.1f} epochs) in {result.seconds:.0f} s, {result.samples_per_second:.1f} samples/s; "
        f"best {metric} on val {result.metrics[metric]:.4f} after epoch {result.best_epoch}"
    )


def collect(spec: RunSpec, result: RunResult, *, target: Path) -> None:
    """Put the weights, the newest checkpoint and the curves of a finished run into `target`, all or nothing.

    Raises:
        SlipwayError: when the weights have been damaged since they were written.
    """
    from engine.tracking import write_curves, write_validation
    from engine.weights import whole_weights

    output = Path(spec.output)
    whole_weights(output / "best.safetensors")
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
    paths = {name: getattr(spec, name) for name in ("records", "root", "output", "sampling_weights")}
    relative = {name: Path(os.path.relpath(path, here)).as_posix() for name, path in paths.items() if path}
    return RunSpec(**{**vars(spec), **relative})


def _save_for_the_ecosystem(spec: RunSpec, model: Path) -> None:
    """The files that the model's own tools open, from the best weights and from the last."""
    import torch

    from engine.parts import load_weights
    from engine.weights import rebuilt

    workload = load(spec.workload)
    settings = workload.Settings.model_validate(spec.settings)
    objective = rebuilt(workload, settings, spec.facts, model / "weights.safetensors")
    workload.save(objective, model, settings, spec.facts, name="best")
    state = torch.load(model / "checkpoint" / "state.pt", map_location="cpu", weights_only=True)
    load_weights(objective, state["average"]["tensors"] or state["weights"])
    workload.save(objective, model, settings, spec.facts, name="last")


if __name__ == "__main__":
    stage_main(run)

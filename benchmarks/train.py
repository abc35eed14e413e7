"""Trains the embedded data set with Slipway and with Ultralytics' own trainer, at equal settings, and compares both.

    python -m benchmarks.train --seeds 0 1 2

Both get the same network, pictures, batch, epochs, optimiser, schedule, augmentation and number of cores; both results are
scored by the same code (COCO protocol, full resolution) on the test split. The comparison goes to benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.conditions import load_now, write_result
from contracts.files import write_json
from contracts.records import Record, Records, write_records
from contracts.run import RunSpec
from contracts.workload import ROOT, load, settings_of

Speed = dict[str, float]

FASTER, BEHIND = 1.15, 0.01
CORES = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=None, help="default: those of params.yaml")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a run of Ultralytics' trainer, in a process of its own
    options = parser.parse_args()
    if options.only:
        train_ultralytics(Path(options.only))
        return
    load_before, settings = load_now(), settings_of("segmentation", ROOT / "params.yaml")
    if options.epochs:
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": options.epochs})})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records, facts = prepare(folder, settings)
        rows = [compare(folder, settings, records, facts, seed) for seed in options.seeds]
    names = ("slipway", "ultralytics")
    summary = {
        f"{who}_{what}_median": statistics.median(row[who][what] for row in rows)
        for who in names
        for what in ("mask_map50_95", "mask_map50", "images_per_second")
    }
    ratio, of_median_steps = (
        statistics.median(row["slipway"][speed] / row["ultralytics"][speed] for row in rows)
        for speed in ("images_per_second", "images_per_second_median_step")
    )
    behind = summary["ultralytics_mask_map50_95_median"] - summary["slipway_mask_map50_95_median"]
    write_result(
        "train",
        bar=f"images/s >= {FASTER:g} x Ultralytics' trainer, mask mAP50-95 on test not more than {BEHIND:g} lower, medians",
        met=ratio >= FASTER and behind <= BEHIND,
        load=load_before,
        epochs=settings.train.epochs,
        speed_ratio_median=ratio,
        speed_ratio_of_median_steps=of_median_steps,
        **summary,
        runs=rows,
    )


def prepare(folder: Path, settings: Any) -> tuple[Records, dict[str, Any]]:
    """The embedded data set, parsed, and once more in Ultralytics' own layout under `folder`/yolo."""
    workload, raw = load("segmentation"), folder / "raw"
    raw.mkdir()
    workload.sample(raw, settings.download.num_samples)
    inputs, targets = workload.schema()
    found = (item for item in workload.parse(raw, settings, processes=1) if isinstance(item, Record))
    write_records(folder / "parse", found, inputs=inputs, targets=targets, shares=settings.parse.shares)
    records = Records.open(folder / "parse", root=raw)
    facts = workload.facts(raw, records, settings)
    for record in records:
        write_yolo(record, folder, facts["classes"])
    places = {split: f"images/{split}" for split in ("train", "val", "test")}
    names = dict(enumerate(facts["classes"]))
    (folder / "yolo" / "data.yaml").write_text(yaml.safe_dump({"path": str(folder / "yolo"), **places, "names": names}))
    return records, facts


def write_yolo(record: Record, folder: Path, classes: list[str]) -> None:
    """One picture and its label file, as Ultralytics' trainer reads them."""
    name = Path(record.inputs["image"])
    picture = folder / "yolo" / "images" / str(record.split) / name.name
    label = folder / "yolo" / "labels" / str(record.split) / f"{name.stem}.txt"
    for path in (picture, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture.symlink_to(folder / "raw" / name)
    size = record.inputs["width"], record.inputs["height"]
    rows = [
        " ".join(
            [str(classes.index(one["name"])), *(f"{value / size[place % 2]:.6f}" for place, value in enumerate(polygon))]
        )
        for one in record.targets["objects"]
        for polygon in one["polygons"]
    ]
    label.write_text("\n".join(rows) + "\n")


def compare(folder: Path, settings: Any, records: Records, facts: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train both from one seed, in turns the one or the other first, and score both."""
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})
    runs: dict[str, Callable[[], tuple[dict[str, Any], Speed]]] = {
        "slipway": lambda: run_slipway(folder / f"slipway-{seed}", settings, records, facts),
        "ultralytics": lambda: run_ultralytics(folder, settings, seed),
    }
    row: dict[str, Any] = {"seed": seed}
    for name in runs if seed % 2 == 0 else reversed(runs):
        load_before = round(load_now(), 2)
        weights, speed = runs[name]()
        row[name] = {**score(weights, settings, records, facts), **speed, "load_before": load_before}
    print(row, flush=True)
    return row


def speed_of(batch: int, steps: Sequence[float]) -> Speed:
    """From the seconds of all steps; those of the median step say what it would be where nothing disturbs."""
    seconds = {"images_per_second": sum(steps) / len(steps), "images_per_second_median_step": statistics.median(steps)}
    return {name: batch / value for name, value in seconds.items()}


def run_slipway(output: Path, settings: Any, records: Records, facts: Mapping[str, Any]) -> tuple[dict[str, Any], Speed]:
    """Weights by name and images/s, over all steps, start-up and validation left out on both sides."""
    from safetensors.torch import load_file

    from engine.hardware import detect
    from engine.launch import launch
    from engine.planning import plan
    from engine.tracking import read_journal

    places = {"records": str(records.path.parent), "root": str(records.root), "output": str(output)}
    dumped = settings.model_dump(mode="json")
    launch(
        RunSpec("segmentation", dumped, dict(facts), **places, plan=plan(detect(), settings.train), fingerprint="benchmark")
    )
    lines = [line for line in read_journal(output / "metrics.jsonl") if "step_seconds" in line]
    counts = [after - before for before, after in pairwise([0, *(line["step"] for line in lines)])]
    steps = [line["step_seconds"] for count, line in zip(counts, lines, strict=True) for _ in range(count)]
    return load_file(output / "best.safetensors"), speed_of(settings.train.global_batch, steps)


def run_ultralytics(folder: Path, settings: Any, seed: int) -> tuple[dict[str, Any], Speed]:
    """The same by Ultralytics' trainer, in a process of its own."""
    import torch

    from workloads.segmentation.yolo import prepare_ultralytics

    output = folder / f"ultralytics-{seed}"
    output.mkdir()
    write_json(
        output / "settings.json", {**settings.train.model_dump(mode="json"), "data": str(folder / "yolo" / "data.yaml")}
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(CORES), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "benchmarks.train", "--only", str(output)], check=True, env=environment, cwd=ROOT)
    prepare_ultralytics()
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(str(output / "run" / "weights" / "best.pt"), safe_only=True)
    model = checkpoint.get("ema") or checkpoint["model"]
    state = {f"model.{name}": value.float() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    return state, yaml.safe_load((output / "speed.yaml").read_text())


def train_ultralytics(output: Path) -> None:
    """Train as `output`/settings.json says, in this process."""
    from contracts.files import read_json
    from workloads.segmentation.yolo import MODELS, prepare_ultralytics

    prepare_ultralytics()
    import torch
    from ultralytics import YOLO
    from ultralytics.utils import SETTINGS

    SETTINGS.update({"mlflow": False, "wandb": False, "tensorboard": False})  # it would report to whatever is installed
    train = read_json(output / "settings.json")
    config = yaml.safe_load((MODELS / f"{train['model']}.yaml").read_text())
    path = output / "digits-seg.yaml"
    path.write_text(yaml.safe_dump({"nc": 10, **config}, sort_keys=False))
    model, times = YOLO(str(path), task="segment"), []
    model.add_callback("on_train_start", lambda trainer: torch.set_num_threads(CORES))
    model.add_callback("on_train_batch_start", lambda trainer: times.append((trainer.epoch, time.perf_counter())))
    how = {name: value for name, value in train["augmentation"].items() if name != "close_mosaic"}
    model.train(
        data=train["data"], imgsz=train["image_size"], batch=train["global_batch"], nbs=train["global_batch"], seed=train["seed"],
        epochs=int(train["epochs"]), optimizer=train["optimizer"], lr0=train["learning_rate"], lrf=train["final_learning_rate"],
        momentum=train["momentum"], weight_decay=train["weight_decay"], warmup_epochs=train["warmup_epochs"], warmup_bias_lr=0.0,
        cos_lr=True, close_mosaic=0, erasing=0.0, device="cpu", workers=0, amp=False, plots=False, pretrained=False,
        project=str(output), name="run", verbose=False, cache="ram", overlap_mask=True, mask_ratio=4, **how,
    )  # fmt: skip
    # From one batch's start to the next one's: the loader's time counts, the validation between epochs does not.
    steps = [after - before for (epoch, before), (next_epoch, after) in pairwise(times) if epoch == next_epoch]
    (output / "speed.yaml").write_text(yaml.safe_dump(speed_of(train["global_batch"], steps)))


def score(weights: dict[str, Any], settings: Any, records: Records, facts: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of these weights on the test split."""
    from engine.torch_runtime import torch_run

    workload = load("segmentation")
    objective = workload.build(settings, facts, pretrained=False)
    objective.load_state_dict(weights)
    run = torch_run(workload.graphs(objective.eval(), settings, facts), "cpu")
    scores = workload.score(workload.measure(run, records.split("test"), settings, facts), settings, facts)
    return {name: scores.metrics[name] for name in ("mask_map50_95", "mask_map50", "box_map50_95", "box_map50")}


if __name__ == "__main__":
    main()

"""How well models of algorithm distillation learn in their context: `python -m benchmarks.in_context` writes results/in_context.json.

Plain AD as params.yaml has it, on three splits of the tasks with three seeds each; compressed AD on the same splits, with a window
four times smaller; and plain AD of every other source of histories. Each is a whole run of the stages download to evaluate in a project
of its own. Nothing is timed, so there are as many at once as there are cores, a core each. With `--folder` what is done
is kept, and a run that was interrupted goes on with the rows that are missing, or were made with other settings or other code of the
workload. The rows hold the return of every episode, and docs/images/in_context_trainings.png is drawn of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import mean
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.conditions import load_now, write_result
from contracts.files import read_json, replace_when_complete, write_json
from contracts.workload import ROOT, Chart, code_of
from tasks.lineage import git_state
from tasks.reporting.charts import png
from workloads.algorithm_distillation.scoring import NUM_DRAWS, band

CHART = ROOT / "docs" / "images" / "in_context_trainings.png"
NAME = "algorithm_distillation"
STAGES = ("download", "parse", "prepare", "plan", "train", "evaluate")
LEAST_OF_OPTIMUM, MOST_LOST = 0.95, 0.10
MODELS = {"default": "plain AD", "compressed": "compressed AD"}
BAR = f"plain AD >= {LEAST_OF_OPTIMUM:g} of the optimum, the mean over 3 seeds x 3 splits; compressed AD within {MOST_LOST:.0%} of it"
# What a source needs to be seen learning, where it is not what the explorer needs. PPO's are the original's 1,040 steps; four
# streams a task are what it makes in minutes, and each is drawn as often more. A model of q_learning's
# histories is trained three times as long as the default, so that what it lacks is not the training's length alone.
OTHER_SOURCES: dict[str, dict[str, dict[str, Any]]] = {
    "q_learning": {"download": {"episodes": 36}, "train": {"epochs": 12}},
    "ppo": {"download": {"episodes": 52, "num_samples": 324}, "train": {"epochs": 30, "warmup_epochs": 1.5}},
    "noisy_optimum": {},
}


@dataclass(frozen=True)
class Learner:
    """One training: histories of `source`, the preset's model, which tasks are held out, and the seed of the training."""

    preset: str
    source: str
    split: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.source}-{self.split}-{self.seed}"

    @property
    def made_of(self) -> str:
        """Names the settings and the workload's code."""
        text = json.dumps([self.section(), code_of(NAME)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def section(self) -> dict[str, Any]:
        """The workload's section of params.yaml."""
        here = ROOT / "workloads" / NAME / "presets" / f"{self.preset}.yaml"
        section: dict[str, dict[str, Any]] = yaml.safe_load(here.read_text(encoding="utf-8"))
        wanted = {
            "download": {"source": self.source},
            "parse": {"seed": self.split},
            "plan": {"backend": "single"},
            "train": {"seed": self.seed},
        }
        for changes in (wanted, OTHER_SOURCES.get(self.source, {})):
            for stage, values in changes.items():
                section[stage] = {**(section.get(stage) or {}), **values}
        return section


def learners() -> list[Learner]:
    """All of them; the one that takes longest first."""
    splits = range(3)
    plain = [Learner("default", "explorer", split, seed) for split in splits for seed in splits]
    compressed = [Learner("compressed", "explorer", split, split) for split in splits]
    others = [Learner("default", source, 0, 0) for source in sorted(OTHER_SOURCES, key="ppo".__ne__)]
    return [*others, *plain, *compressed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where what is done is kept")
    options = parser.parse_args()
    if git_state() is None:
        parser.error("every row names the revision it was made at: run this in a clone, with git")
    load = load_now()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = all_rows(folder.resolve(), learners())
    write_result("in_context", bar=BAR, load=load, **found(rows), rows=rows)
    CHART.write_bytes(png(chart_of(rows)))


def found(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say of the bars; compressed AD is compared with plain AD of the same split and seed."""
    plain = {(row["split"], row["seed"]): row for row in rows if (row["preset"], row["source"]) == ("default", "explorer")}
    compressed = {(row["split"], row["seed"]): row for row in rows if row["preset"] == "compressed"}
    reached = mean(row["return_of_optimum"] for row in plain.values())
    lost = mean(1 - row["return_of_optimum"] / plain[which]["return_of_optimum"] for which, row in compressed.items())
    return {
        "met": reached >= LEAST_OF_OPTIMUM and lost <= MOST_LOST,
        "plain": reached,
        "plain_on_the_farthest_goals": mean(row["hardest"] for row in plain.values()),
        "compressed": mean(row["return_of_optimum"] for row in compressed.values()),
        "lost_by_compression": lost,
    }


def chart_of(rows: Sequence[dict[str, Any]]) -> Chart:
    """The explorer's models, episode by episode: the mean over trainings, and where most of the means lie that are drawn of them with
    replacement. The source is that of plain AD's trainings."""
    own = {preset: [row for row in rows if (row["preset"], row["source"]) == (preset, "explorer")] for preset in MODELS}
    curves = {MODELS[preset]: np.array([row["curve"].split() for row in some], float) for preset, some in own.items()}
    curves["source"] = np.array([row["source_curve"].split() for row in own["default"]], float)
    episodes = list(range(1, curves["source"].shape[1] + 1))
    lines = {name: (episodes, values.mean(0).tolist()) for name, values in curves.items()}
    lines |= {"random": (episodes, [mean(row["random"] for row in own["default"])] * len(episodes))}
    lines |= {"optimum": (episodes, [1.0] * len(episodes))}
    rng = np.random.default_rng(0)
    bands = {
        name: band(values[rng.integers(len(values), size=(NUM_DRAWS, len(values)))].mean(1))
        for name, values in curves.items()
    }
    y = "return, share of the optimum"
    return Chart("Learning in context, over trainings", "lines", "episode", y, lines, MODELS["default"], bands)


def all_rows(folder: Path, wanted: Sequence[Learner]) -> list[dict[str, Any]]:
    """What each of them reached, as many at once as there are cores."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in cores_of(psutil.Process()):
        cores.put(core)

    def row(learner: Learner) -> dict[str, Any]:
        core = cores.get()
        try:
            return row_of(learner, folder, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        return list(pool.map(row, wanted))


def cores_of(process: psutil.Process) -> list[int]:
    """Those that a process may use."""
    return process.cpu_affinity() or [] if hasattr(process, "cpu_affinity") else [*range(psutil.cpu_count() or 1)]


def row_of(learner: Learner, folder: Path, core: int) -> dict[str, Any]:
    """What one reached on its held-out tasks, or why its histories were refused; `code` says by which revision. A row that is kept
    is taken where the same settings and code made it."""
    kept, made_of = folder / f"{learner.name}.json", learner.made_of
    if not kept.exists() or read_json(kept).get("made_of") != made_of:
        code = git_state()
        with replace_when_complete(folder / learner.name) as project:
            project.mkdir(parents=True)
            (project / "params.yaml").write_text(yaml.safe_dump({NAME: learner.section()}), encoding="utf-8")
            write_json(kept, {**asdict(learner), "code": code, "made_of": made_of, **reached(project, core)})
        print(kept.read_text(), flush=True)
    return read_json(kept)


def reached(project: Path, core: int) -> dict[str, Any]:
    """The scores of a project whose stages have run."""
    for stage in STAGES:
        with (project / f"{stage}.log").open("w") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", f"tasks.{stage}", NAME]
            process = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
            if hasattr(psutil.Process, "cpu_affinity"):
                psutil.Process(process.pid).cpu_affinity([core])
        if process.wait():
            words = Path(log.name).read_text().strip()
            if stage != "parse" or "nothing to distil" not in words:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {words[-2000:]}")
            return {"refused_by": stage, "because": words.splitlines()[-1]}
    evaluated = project / "data" / "evaluate" / NAME
    metrics, scores = read_json(evaluated / "metrics.json"), read_json(evaluated / "details" / "scores.json")
    tasks, lines = scores["rows"], scores["charts"][0]["lines"]
    least = min(row["optimum"] for row in tasks)
    hardest = mean(row["return_of_optimum"] for row in tasks if row["optimum"] == least)
    metrics["return_of_source"] = metrics.pop("source")
    by_task = {row["task"]: row["return_of_optimum"] for row in tasks}
    curve, source = (" ".join(f"{value:.3f}" for value in lines[name][1]) for name in ("model", "source"))
    return {**metrics, "hardest": hardest, "tasks": by_task, "curve": curve, "source_curve": source}


if __name__ == "__main__":
    main()

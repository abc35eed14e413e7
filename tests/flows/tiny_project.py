"""A throwaway project with a pipeline of tiny stages of its own: the flows must need nothing but its dvc.yaml."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

DVC_YAML = """
stages:
  fetch:
    foreach: ${workloads}
    do:
      cmd: python stages.py fetch ${item}
      deps: [source.txt]
      outs: ["data/fetch/${item}"]
      meta: {retries: 0, timeout_minutes: 5}
  layout:
    foreach: ${workloads}
    do:
      cmd: python stages.py layout ${item}
      outs: ["data/layout/${item}"]
  fit:
    foreach: ${workloads}
    do:
      cmd: python stages.py fit ${item}
      deps: ["data/fetch/${item}"]
      params: ["${item}.fit"]
      outs: ["data/fit/${item}/model"]
      metrics: ["data/fit/${item}/result.json"]
      meta: {retries: 1, timeout_minutes: 5, after: layout}
  quantize:
    foreach: ${workloads}
    do:
      cmd: python stages.py finish ${item}
      deps: ["data/fit/${item}/model"]
      outs: ["data/quantize/${item}", "data/report/${item}"]
"""

STAGES = """
import json, os, pathlib, subprocess, sys, time
import yaml

stage, workload = sys.argv[1:]


def folder(name):
    path = pathlib.Path("data") / name / workload
    path.mkdir(parents=True, exist_ok=True)
    return path


def tell(done, total):
    with open(os.environ.get("SLIPWAY_PROGRESS", os.devnull), "a") as file:
        file.write(json.dumps({"title": "fitting", "done": done, "total": total, "note": f"loss {1 / done:.2f}"}) + "\\n")


if stage == "fetch":
    folder("fetch").joinpath("raw.txt").write_text(pathlib.Path("source.txt").read_text())
elif stage == "layout":
    folder("layout").joinpath("plan.txt").write_text("one rank")
elif stage == "fit":
    settings = yaml.safe_load(pathlib.Path("params.yaml").read_text())[workload]["fit"]
    # A rank in a session of its own, as torchrun starts them.
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "slipway-test-rank"], start_new_session=True)
    pathlib.Path("rank.pid").write_text(str(rank.pid))
    for step in range(1, settings["steps"] + 1):
        print(f"step {step} of the fit", flush=True)
        tell(step, settings["steps"])
        time.sleep(settings["seconds"])
    rank.kill()
    rank.wait()
    if settings.get("crashes_once") and not os.path.exists("crashed"):
        pathlib.Path("crashed").write_text("")
        os._exit(9)
    if settings.get("fails"):
        print("error: params.yaml: fit.fails is set; remove it", file=sys.stderr)
        sys.exit(settings["fails"])
    folder("fit").joinpath("model").write_text(pathlib.Path("data/fetch", workload, "raw.txt").read_text() + str(settings["steps"]))
    folder("fit").joinpath("result.json").write_text(json.dumps({"accuracy": 0.9, "seconds": {"total": 1.5}}))
elif stage == "finish":
    rows = [{"name": "torch", "metric": 0.9, "bytes": 4000000, "latency_ms": None},
            {"name": "int8", "metric": 0.89, "bytes": 1000000, "latency_ms": 2.5}]
    comparison = {"chosen": "int8", "metric": "accuracy", "rows": rows, "passed": True}
    folder("quantize").joinpath("comparison.json").write_text(json.dumps(comparison))
    folder("report").joinpath("report.md").write_text(f"# Report of {workload}")
    folder("report").joinpath("report.html").write_text("<h1>Report</h1>")
"""

PARAMS = """
workloads: [tiny, other]
tiny:
  fit: {steps: 2, seconds: 0.01}
other:
  fit: {steps: 1, seconds: 0.01}
"""


@dataclass(frozen=True)
class Served:
    """A project whose Prefect has a server; `variables` are the environment of everything that is started in it.

    `workers` are those that were started with the command `work`, the dead ones too.
    """

    folder: Path
    variables: dict[str, str]
    url: str
    work: list[str]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)


def environment(home: Path, **more: str) -> dict[str, str]:
    """Variables for a process whose Prefect knows nothing of this user's; without this environment's programs on the PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SLIPWAY_"))}
    identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in GIT_IDENTITY.items()}
    quiet = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return {**kept, **identity, **quiet, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "300", **more}


GIT_IDENTITY = {"NAME": "test", "EMAIL": "test@example.com"}


def make_project(folder: Path, variables: Mapping[str, str]) -> Path:
    """A git and DVC repository with the pipeline above and a local remote."""
    folder.mkdir(parents=True)
    for name, text in {
        "dvc.yaml": DVC_YAML,
        "stages.py": STAGES,
        "params.yaml": PARAMS,
        "source.txt": "data of today",
        ".gitignore": "/data/\n/.slipway/\n/rank.pid\n/crashed\n",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    run(["git", "init", "-q", "-b", "main"], folder, variables)
    dvc(folder, variables, "init", "-q")
    (folder / ".dvc" / "config").write_text((ROOT / ".dvc" / "config").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / ".dvcignore").write_text((ROOT / ".dvcignore").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def run(command: list[str], folder: Path, variables: Mapping[str, str], *, status: int = 0) -> str:
    """What a command printed; it must end with `status`."""
    done = subprocess.run(command, cwd=folder, env=dict(variables), capture_output=True, text=True, timeout=180)
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def python(folder: Path, variables: Mapping[str, str], *arguments: str, status: int = 0) -> str:
    return run([sys.executable, *arguments], folder, variables, status=status)


def dvc(folder: Path, variables: Mapping[str, str], *arguments: str, status: int = 0) -> str:
    """DVC with this environment's python first on the PATH, as in an activated environment."""
    path = str(Path(sys.executable).parent) + os.pathsep + variables.get("PATH", "")
    return run([sys.executable, "-m", "dvc", *arguments], folder, {**variables, "PATH": path}, status=status)


def start(command: list[str], folder: Path, variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True)


def hire(served: Served) -> None:
    """Start one more worker; what it says goes beside the project, to worker-NUMBER."""
    log = served.folder.with_name(f"worker-{len(served.workers)}")
    served.workers.append(start(served.work, served.folder, {**served.variables, "PREFECT_WORKER_QUERY_SECONDS": "1"}, log))


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition: Callable[[], object], *, seconds: float = 90, what: object = "") -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what.read_text() if isinstance(what, Path) else what
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False

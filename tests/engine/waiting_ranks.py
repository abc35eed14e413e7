"""Ranks that wait for runs and train them in turn: a start of Python and torch for all of them, not for each.

Every run is a process of its own on every rank, forked from one that has imported everything and done nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from contracts.files import read_json, write_json
from contracts.plan import Plan
from contracts.preflight import Finding
from contracts.run import RunResult, RunSpec
from engine import launch, worker
from engine.backends import NAMES
from engine.preflight import FINDINGS
from engine.preflight.__main__ import check_run
from tests.engine import tiny_ranks
from tests.engine.planted import faulty_rank
from workloads.segmentation.yolo import prepare_ultralytics

POLL_SECONDS, PATIENCE_SECONDS = 0.02, 120.0
MOST_RANKS = 2
# Libraries that take seconds to import, by the workload or the backend that needs them.
LIBRARIES = {
    "captioning": ("transformers.models.llama.modeling_llama", "transformers.models.siglip.modeling_siglip", "peft"),
    "segmentation": ("ultralytics.nn.tasks", "ultralytics.data.augment", "ultralytics.utils.loss", "faster_coco_eval"),
    "accelerate": ("accelerate",),
    # deepspeed imports the last two only when its first engine is made.
    "deepspeed": ("deepspeed", "deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.zero.muon.muon_optimizer"),
}
OWNER = "WAITING_FOR_RUNS_OF"


class WaitingRanks:
    """Two ranks under torchrun, which know the tiny workload; started with the first run, ended with the process that OWNER names
    in the environment. A run of one rank is the first one's alone. Processes with the same folder have the same ranks, and wait for
    each other's runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, spec: RunSpec, *, planted: str = "") -> RunResult:
        """What the ranks report of a run, as `engine.launch.launch` would; `planted` is a fault of `tests.engine.planted`."""
        self._be("engine.worker", spec, planted)
        return RunResult.read(Path(spec.output) / "result.json")

    def check(self, spec: RunSpec, *, planted: str = "") -> list[Finding]:
        """What the checks before a run find in the ranks, as `engine.preflight.examine` would."""
        self._be("engine.preflight", spec, planted)
        told = (json.loads(line) for line in (Path(spec.output) / FINDINGS).read_text().splitlines())
        return [Finding(**one) for one in told if "name" in one]

    def _be(self, module: str, spec: RunSpec, planted: str) -> None:
        """Have the ranks run the spec as `module`. Ranks that do not answer are ended; the next run gets others."""
        output = Path(spec.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "result.json").unlink(missing_ok=True)
        spec.write(output / "spec.json")
        asked = {"spec": str(output / "spec.json"), "ranks": spec.plan.ranks, "module": module, "planted": planted}
        with FileLock(self.folder / "lock"):
            ranks = self.folder / "ranks"
            agent, turn = _agent(ranks), len(list(ranks.glob("asked-*.json")))
            write_json(ranks / f"asked-{turn}.json", asked)
            try:
                ended = [_wait_for(ranks / f"ended-{turn}-{rank}.json", agent) for rank in range(spec.plan.ranks)]
            except AssertionError:
                end_tree(agent)
                ranks.rename(output / "ranks-that-did-not-answer")
                raise
        assert all(one["status"] == 0 for one in ended), [one["message"] for one in launch.errors_in(output)]


def _agent(folder: Path) -> int:
    """The process that the ranks of a folder belong to, which is started where there is none."""
    there = folder / "agent.json"
    if not there.exists():
        folder.mkdir(exist_ok=True)
        plan = Plan("ddp", "cpu", MOST_RANKS, 1, 1, 1, 0, 2, "fp32", {})
        line = tiny_ranks.command(plan, folder, module="tests.engine.waiting_ranks")
        variables = launch.environment(plan)
        del variables["SLIPWAY_LAUNCHER"]  # a launcher ends all that carry its number when one of its runs is over
        agent = subprocess.Popen(line, env=variables, start_new_session=True)
        agent.returncode = 0  # nobody here waits for it; Popen would warn of that
        write_json(there, {"pid": agent.pid})
    return read_json(there)["pid"]


def end_tree(number: int) -> None:
    """Kill a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        agent = psutil.Process(number)
        for one in [*agent.children(recursive=True), agent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def lives(number: int) -> bool:
    """Whether there is a process with this number that has not ended."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def said(spec: RunSpec) -> str:
    """What the ranks of a run have printed, one after the other."""
    return "".join(path.read_text(errors="replace") for path in sorted(Path(spec.output).glob("said-*.txt")))


def _wait_for(path: Path, other: int) -> dict[str, Any]:
    """What stands in a file, once it is there.

    Raises:
        AssertionError: when the process `other` is gone, or PATIENCE_SECONDS are over.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert lives(other), f"process {other} has ended without {path}"
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(POLL_SECONDS)
    return read_json(path)


def import_everything() -> None:
    """What any run would import."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    backends = [f"engine.backends.{name}" for name in NAMES]
    for module in ("pandas", "torch._dynamo", "engine.loop", *backends, "workloads.tiny"):
        importlib.import_module(module)


def import_what_is_large(run: RunSpec) -> None:
    """The libraries of a run's workload and of its backend; once for all of its kind."""
    if run.workload == "segmentation":
        prepare_ultralytics()
    for module in (*LIBRARIES.get(run.workload, ()), *LIBRARIES.get(run.plan.backend, ())):
        importlib.import_module(module)


def main(folder: Path) -> None:
    """Train what is asked for, turn by turn, until nobody is there to ask."""
    import_everything()
    rank, owner = os.environ["RANK"], int(os.environ[OWNER])
    for turn in itertools.count():
        path = folder / f"asked-{turn}.json"
        while not path.exists():
            if not lives(owner):
                return
            time.sleep(POLL_SECONDS)
        asked = read_json(path)
        if int(rank) >= asked["ranks"]:
            continue
        import_what_is_large(RunSpec.read(Path(asked["spec"])))
        write_json(folder / f"ended-{turn}-{rank}.json", {"status": _in_a_process(**asked)})


def _checked(spec: str) -> int:
    return worker.run_rank(spec, partial(check_run, shortest=0.0))


# What a rank does as a module.
WORK = {"engine.worker": worker.main, "engine.preflight": _checked}


def _in_a_process(*, spec: str, ranks: int, module: str, planted: str) -> int:
    """The status of a rank that is `module` for the run of `spec`, in a process that ends with it; what it prints goes to a file."""
    os.environ.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), str(ranks)))
    with Path(spec).with_name(f"said-{os.environ['RANK']}.txt").open("ab") as printed:
        if sys.platform != "linux":  # no fork, or none that is safe once libraries are loaded
            words = [sys.executable, "-m", "tests.engine.tiny_ranks", "tests.engine.planted", module, spec]
            words += ["0"] if module == "engine.preflight" else []
            return subprocess.run(words, env={**os.environ, "PLANTED": planted}, stdout=printed).returncode
        if (child := os.fork()) == 0:
            os.dup2(printed.fileno(), 1)
            os._exit(faulty_rank(spec, planted, WORK[module]))
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if not lives(int(os.environ[OWNER])):
                os.kill(child, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        return os.waitstatus_to_exitcode(ended[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

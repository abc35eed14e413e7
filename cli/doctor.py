"""`slipway doctor`: the environment's self-test in words, one line a check: ok, warning, fault (with what to do) or not run (and why)."""

from __future__ import annotations

import configparser
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from contracts.plan import Hardware
from contracts.workload import ROOT
from engine import selftest
from engine.hardware import detect
from engine.planning import process_group

State = Literal["ok", "warning", "fault", "not run"]
GIB = 1 << 30
PROBE_SECONDS = 60
REINSTALL = "build the environment again from requirements.lock: delete .venv, then `make test`"

IMPORTS = {
    "torch": "import torch, torchvision; print(torch.__version__, 'CUDA', torch.version.cuda)",
    "OpenCV": "import cv2, numpy; cv2.resize(numpy.zeros((4, 4, 3), numpy.uint8), (2, 2)); print(cv2.__version__)",
    "ONNX Runtime": """
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doctor", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
assert (session.run(None, {"x": numpy.ones((3, 2), "float32")})[0] == 2).all(), "1 + 1 is not 2"
names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
print(onnxruntime.__version__, "runs a graph; providers:", ", ".join(names))
""",
}
# Prefect must not phone home for being asked: what Slipway's flows set is noted first, then tracking is off in any case.
PREFECT_PROBE = """
import json, os, flows
quiet = os.environ.get("DO_NOT_TRACK", "").lower() in ("1", "true", "yes")
os.environ["DO_NOT_TRACK"] = "1"
import prefect
from prefect.settings import get_current_settings
settings = get_current_settings()
print(json.dumps({"version": prefect.__version__, "home": str(settings.home), "api": settings.api.url,
                  "quiet": quiet and not settings.server.analytics_enabled}))
"""


@dataclass(frozen=True)
class Finding:
    """What one check found; a warning or a fault says in `remedy` what to do."""

    name: str
    state: State
    text: str
    remedy: str = ""

    def line(self) -> str:
        return f"{self.state:<8} {self.name:<20} {self.text}" + (f" -> {self.remedy}" if self.remedy else "")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False) -> None:
    """Test the environment: packages, devices, process groups, precision, Prefect, DVC, disk. Exit status 1 on any fault."""
    start = time.monotonic()
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(finding.line(), flush=True)
    counts = {state: sum(one.state == state for one in findings) for state in ("ok", "warning", "fault", "not run")}
    if as_json:
        print(json.dumps({"counts": counts, "findings": [dataclasses.asdict(one) for one in findings]}, indent=2))
    else:
        told = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
        print(f"\n{told}, in {time.monotonic() - start:.0f} s")
    if counts["fault"]:
        raise typer.Exit(1)


def examine() -> Iterator[Finding]:
    """Every check, in the same order each time; one that breaks is a fault of its own and stops no other.

    Two run at a time: most of them wait for processes of their own.
    """
    hardware = detect()
    checks: list[tuple[str, Callable[..., Iterator[Finding]], tuple[Any, ...]]] = [
        ("Python", python, ()),
        ("packages", packages, ()),
        *((name, imported, (name, code)) for name, code in IMPORTS.items()),
        ("devices", devices, (hardware,)),
        ("process group", process_groups, (hardware,)),
        ("Prefect", prefect, ()),
        ("DVC", dvc, ()),
        ("git", git, ()),
        ("project", project, ()),
        ("clock", clock, ()),
        ("disk and memory", room, (hardware,)),
    ]
    pool = ThreadPoolExecutor(max_workers=2)
    try:
        for found in [pool.submit(guarded, name, check, *arguments) for name, check, arguments in checks]:
            yield from found.result()
    finally:
        pool.shutdown(cancel_futures=True)


def guarded(name: str, check: Callable[..., Iterator[Finding]], *arguments: Any) -> list[Finding]:
    """What a check finds, and a fault when it breaks."""
    findings = []
    try:
        for finding in check(*arguments):
            findings.append(finding)
    except Exception as error:
        findings.append(
            Finding(name, "fault", f"the check broke: {type(error).__name__}: {error}", "please report this as a bug")
        )
    return findings


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("Python", "ok" if good else "fault", version, "" if good else "use Python 3.11, 3.12 or 3.13")


def packages(pyproject: Path = ROOT / "pyproject.toml") -> Iterator[Finding]:
    """Installed versions against what pyproject.toml asks for."""
    import tomllib

    from packaging.requirements import Requirement

    if pyproject.is_file():
        asked = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        asked = [one for one in importlib.metadata.requires("slipway") or [] if "extra ==" not in one]
    wrong = []
    for requirement in map(Requirement, asked):
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, asked is {requirement.specifier}")
    if wrong:
        yield Finding("packages", "fault", "; ".join(wrong), REINSTALL)
    else:
        yield Finding("packages", "ok", f"all {len(asked)} are there, in the versions that pyproject.toml asks for")


def imported(name: str, code: str) -> Iterator[Finding]:
    """Importing in a process of its own: a library that crashes takes only that one with it."""
    status, output = probe([sys.executable, "-c", code])
    yield (Finding(name, "ok", output) if status == 0 else Finding(name, "fault", output, REINSTALL))


def probe(
    command: list[str], environment: Mapping[str, str] | None = None, seconds: float = PROBE_SECONDS
) -> tuple[int, str]:
    """Exit status and what a command said: its output, or the last line of its errors. Status -1 when it did not end in time."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=variables)
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {seconds:g} s"
    if done.returncode == 0:
        return 0, done.stdout.strip()
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return done.returncode, last[0] if last else f"ended with status {done.returncode}"


def devices(hardware: Hardware) -> Iterator[Finding]:
    for one in hardware.devices:
        capability = ".".join(map(str, one.capability))
        text = f"{one.name}, {one.free / GIB:.1f} of {one.memory / GIB:.1f} GiB free, capability {capability}, driver {hardware.driver}"
        busy = one.free < one.memory / 2
        yield Finding(f"GPU {one.index}", "warning" if busy else "ok", text, "end what else uses it" if busy else "")
    cores = f"{hardware.cpu}, {hardware.cores} cores" + (", native bf16" if hardware.bf16_cpu else "")
    yield Finding("CPU", "ok", cores + ("" if hardware.devices else "; no GPU, so training runs here"))
    for note in hardware.notes:
        yield Finding("devices", "warning", note, "`slipway hardware` shows what training will use")


def process_groups(hardware: Hardware, launch: Callable[..., selftest.Outcome] = selftest.launch) -> Iterator[Finding]:
    """The self-test on 1 and 2 CPU ranks, and on 1 and all GPUs; half precision and batch statistics come with it."""
    starts = [("cpu", "gloo", 1), ("cpu", "gloo", 2)]
    if hardware.devices:
        group = process_group("cuda", hardware.platform)
        starts += [("cuda", group, num) for num in sorted({1, len(hardware.devices)})]
    outcome = selftest.Outcome()
    for place, (device, group, ranks) in enumerate(starts):
        kind = "GPU" if device == "cuda" else "CPU"
        name = f"{group}, {ranks} {kind} rank{'s' * (ranks > 1)}"
        most = place + 1 == len(starts) or starts[place + 1][0] != device
        if outcome.phase == selftest.IMPORT:
            for label in [name, *([f"half precision, {kind}", f"statistics, {kind}"] if most else [])]:
                yield Finding(label, "not run", "torch cannot be imported")
            continue
        outcome = launch(ranks, device=device, group=group)
        yield from told(name, kind, outcome, whole=most)
    if not hardware.devices:
        yield Finding("nccl, GPU ranks", "not run", "there is no GPU that torch can use")
    elif not hardware.platform.startswith("Linux"):
        yield Finding("nccl, GPU ranks", "not run", f"NCCL exists for Linux only; on {hardware.platform} gloo does its work")
    elif len(hardware.devices) == 1:
        yield Finding("nccl, 2 GPU ranks", "not run", "there is one GPU, and NCCL wants one for each rank")


def told(name: str, kind: str, outcome: selftest.Outcome, *, whole: bool) -> Iterator[Finding]:
    """An outcome as findings: the group always, what it computed when `whole` or when that is what failed."""
    lines = {
        name: (selftest.START, selftest.IMPORT, selftest.JOIN, selftest.REDUCE, selftest.GRADIENT, selftest.DONE),
        f"half precision, {kind}": (selftest.PRECISION,),
        f"statistics, {kind}": (selftest.STATISTICS,),
    }
    for label, phases in lines.items():
        said = ", ".join(outcome.passed[phase] for phase in phases if phase in outcome.passed)
        if outcome.fault and outcome.phase in phases:
            yield Finding(label, "fault", outcome.fault, outcome.remedy)
        elif said and (whole or label == name):
            yield Finding(label, "ok", said)
        elif whole and not said:
            yield Finding(label, "not run", f"the ranks failed while {outcome.phase}")


def prefect() -> Iterator[Finding]:
    """Version, telemetry, home and server; asked in a process of its own, in the environment that our flows set."""
    status, output = probe([sys.executable, "-c", PREFECT_PROBE])
    if status:
        yield Finding("Prefect", "fault", output, REINSTALL)
        return
    found = json.loads(output.splitlines()[-1])
    home, api = Path(found["home"]), found["api"]
    if not writable(home):
        yield Finding("Prefect", "fault", f"{home} cannot be written", "set PREFECT_HOME to a folder of your own")
    elif api and (fault := unreachable(f"{api.rstrip('/')}/health")):
        remedy = "start it (`prefect server start`), or unset PREFECT_API_URL to let each run start its own"
        yield Finding("Prefect", "fault", f"the server {api} does not answer: {fault}", remedy)
    elif not found["quiet"]:
        remedy = "set DO_NOT_TRACK=1 and PREFECT_SERVER_ANALYTICS_ENABLED=false"
        yield Finding("Prefect", "warning", f"{found['version']}, telemetry is on", remedy)
    else:
        server = f"server {api}" if api else "no server set: each run starts its own"
        yield Finding("Prefect", "ok", f"{found['version']}, telemetry off, home {home}, {server}")


def unreachable(address: str) -> str:
    """Why an http address gives no answer; empty when it does."""
    if not address.startswith(("http://", "https://")):
        return "not an http address"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except OSError as error:
        return str(getattr(error, "reason", error))


def writable(folder: Path) -> bool:
    """Whether a file can be made in `folder`, or the folder itself where it is not there yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError:
        return False


def dvc(folder: Path = Path(".")) -> Iterator[Finding]:
    """Version, repository, where data is pushed to, and whether the cache shares files instead of copying them."""
    status, output = probe([sys.executable, "-m", "dvc", "version"])
    if status:
        yield Finding("DVC", "fault", output, REINSTALL)
        return
    lines = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    version = lines.get("DVC version", "?").split()[0]
    if not (folder / ".dvc").is_dir():
        remedy = "run the doctor in the project's folder, or `dvc init` in a new one"
        yield Finding("DVC", "warning", f"{version}; {folder.absolute()} is not a DVC repository", remedy)
        return
    name, url, quiet = remote(folder / ".dvc")
    links = lines.get("Cache types", "unknown")
    if name is None:
        remedy = "`dvc remote add -d storage FOLDER_OR_ADDRESS`, so that `dvc push` has a place"
        yield Finding("DVC", "warning", f"{version}; no default remote is set", remedy)
    elif not quiet:
        yield Finding("DVC", "warning", f"{version}; its telemetry is on", "`dvc config core.analytics false`")
    elif "no-dvc-cache" in links:
        yield Finding("DVC", "ok", f"{version}, telemetry off, remote {name} at {url}, nothing cached yet")
    elif "link" not in links:
        remedy = "put the project and .dvc/cache on one disk that has links (reflink, hardlink or symlink)"
        yield Finding("DVC", "warning", f"{version}; the cache copies files ({links}): data takes twice its size", remedy)
    else:
        yield Finding("DVC", "ok", f"{version}, telemetry off, remote {name} at {url}, cache by {links}")


def remote(folder: Path) -> tuple[str | None, str, bool]:
    """Name and address of the default remote in a .dvc folder, and whether telemetry is off."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([folder / "config", folder / "config.local"], encoding="utf-8")
    name = config.get("core", "remote", fallback=None)
    sections = {section.strip("'"): section for section in config.sections()}
    section = sections.get(f'remote "{name}"')
    url = config.get(section, "url", fallback="") if section else ""
    off = not config.getboolean("core", "analytics", fallback=True) or os.environ.get("DVC_NO_ANALYTICS", "") not in (
        "",
        "0",
    )
    return (name if url else None), url, off


def git() -> Iterator[Finding]:
    if not shutil.which("git"):
        yield Finding("git", "fault", "not found", "install git: DVC and the lineage of published models need it")
        return
    _, version = probe(["git", "--version"])
    status, _ = probe(["git", "rev-parse", "--is-inside-work-tree"])
    if status:
        yield Finding(
            "git", "warning", f"{version}; this folder is in no repository", "`git init`: DVC and the lineage need one"
        )
    else:
        yield Finding("git", "ok", version)


def project(folder: Path = Path(".")) -> Iterator[Finding]:
    """The files that the pipeline starts from, and a folder that can be written."""
    missing = [name for name in ("params.yaml", "dvc.yaml") if not (folder / name).is_file()]
    if missing:
        remedy = "run from the project's folder"
        yield Finding("project", "warning", f"{folder.absolute()} has no {', '.join(missing)}", remedy)
    elif not writable(folder):
        yield Finding("project", "fault", f"{folder.absolute()} cannot be written", "change its owner or move the project")
    else:
        yield Finding("project", "ok", str(folder.absolute()))


def clock(folder: Path = Path(".")) -> Iterator[Finding]:
    """The machine's time against the file system's and against the project's newest file, which cannot be of the future."""
    with tempfile.NamedTemporaryFile(dir=folder if writable(folder) else None) as file:
        apart = time.time() - os.stat(file.name).st_mtime
    newest = max((path.stat().st_mtime for path in ROOT.glob("*.*")), default=0.0)
    remedy = "set the time (NTP): DVC, certificates and Prefect's schedules rely on it"
    if abs(apart) > 5:
        yield Finding("clock", "warning", f"{abs(apart):.0f} s apart from the file system's", remedy)
    elif newest > time.time() + 60:
        yield Finding("clock", "warning", f"files of the project are {newest - time.time():.0f} s in the future", remedy)
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def room(hardware: Hardware) -> Iterator[Finding]:
    """Disk and main memory against what the smallest training needs."""
    shown = f"{hardware.free_disk / GIB:.1f} GiB free"
    state = grade(hardware.free_disk, least=2 * GIB, good=10 * GIB)
    yield Finding("disk", state, shown, "" if state == "ok" else "make room: data, cache and checkpoints each keep a copy")
    shown = f"{hardware.free_memory / GIB:.1f} of {hardware.memory / GIB:.1f} GiB free"
    state = grade(hardware.free_memory, least=GIB, good=3 * GIB)
    yield Finding("memory", state, shown, "" if state == "ok" else "close other programs, or give the container more memory")


def grade(amount: int, *, least: int, good: int) -> State:
    return "fault" if amount < least else "warning" if amount < good else "ok"

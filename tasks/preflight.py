"""Everything that is checked before a training, as `plan.preflight` says: in its ranks, its export, its target, its needs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.plan import Hardware, as_dict
from contracts.preflight import Estimate, Finding, Report, State
from contracts.progress import clock
from contracts.records import Records
from contracts.run import RunSpec
from contracts.settings import PublishSettings, Settings, validate
from contracts.workload import load, settings_of

GIB = 1 << 30
SHORT_SECONDS = 60.0
LAST = "export"  # the check that ends a preflight
NUM_RECORDS = 4
# Copies of the weights that a run leaves besides its checkpoints: best, the stage's, two for the ecosystem's tools, the graphs
# and what is published.
COPIES_OF_WEIGHTS = 6
# A GPU that is fuller than this may run out of memory on a larger batch.
FULL = 0.95


def before_training(spec: RunSpec, settings: Settings) -> None:
    """The preflight of a run, once for what it looks at, as `plan.preflight` says; not of a run that goes on.

    Raises:
        SlipwayError: when a check failed, with each of them.
    """
    output = Path(spec.output)
    place, wish = output / "preflight.json", settings.plan.preflight
    if any((output / "checkpoints").glob("step-*")) or _was_passed(place, looked_at(spec, settings), whole=wish == "always"):
        return
    if wish == "never":
        print("preflight: none, as plan.preflight says", flush=True)
        return
    began = time.monotonic()
    report = preflight(spec, settings, shortest=0.0 if wish == "always" else SHORT_SECONDS)
    report.write(place)
    print(f"preflight: {summary(report)}, in {time.monotonic() - began:.0f} s", flush=True)
    for one in report.findings:
        if one.state == "warning":
            print(f"preflight: {one.line()}", flush=True)
    if report.failed:
        faults = "\n  ".join(one.line() for one in report.failed)
        raise SlipwayError(
            f"training was not started, for the preflight found:\n  {faults}\n`slipway preflight {spec.workload}` repeats it;"
            " plan.preflight: never trains without it"
        )


def looked_at(spec: RunSpec, settings: Settings) -> str:
    """Names what a preflight looks at: the run, and beyond its fingerprint how it is laid out, what it keeps and where it goes."""
    plan = {name: value for name, value in as_dict(spec.plan).items() if name != "reasons"}
    further = settings.model_dump(mode="json", include={"train", "export", "publish"})
    text = json.dumps([spec.fingerprint, plan, further], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _was_passed(place: Path, fingerprint: str, *, whole: bool) -> bool:
    """Whether the report that lies there is of the same and found no fault; `whole`: not one that was only measured."""
    if not place.is_file():
        return False
    try:
        report = Report.read(place)
    except (ValueError, KeyError, TypeError):
        return False
    made = {one.name for one in report.findings}
    return report.fingerprint == fingerprint and not report.failed and (LAST in made or not whole)


def preflight(
    spec: RunSpec, settings: Settings, *, shortest: float = 0.0, tell: Callable[[Finding], None] = lambda found: None
) -> Report:
    """All checks of a run, each told as soon as it is made. One that takes less than `shortest` seconds is only measured."""
    findings: list[Finding] = []
    estimates: list[Estimate] = []
    for found in _found(spec, settings, shortest, estimates):
        findings.append(found)
        tell(found)
    return Report(looked_at(spec, settings), tuple(findings), estimates[0] if estimates else None)


def _found(spec: RunSpec, settings: Settings, shortest: float, estimates: list[Estimate]) -> Iterator[Finding]:
    """The findings in order; what the run will take goes to `estimates`. The export is tried beside the ranks."""
    from engine.hardware import detect
    from engine.preflight import examine

    hardware = detect()
    with tempfile.TemporaryDirectory(prefix="slipway-export-") as place, ExitStack() as running:
        exporting: Callable[[], Finding] | None = None
        for found in examine(spec, shortest=shortest):
            if isinstance(found, Finding):
                yield found
                continue
            estimates.append(found)
            yield from needs(found, spec, settings, hardware)
            if found.seconds < shortest:
                continue
            exporting = running.enter_context(_exporting(spec, Path(place)))
        if estimates and exporting is None:
            return
        yield publishing(settings.publish, workload=spec.workload)
        yield (exporting or running.enter_context(_exporting(spec, Path(place))))()


@contextmanager
def _exporting(spec: RunSpec, place: Path) -> Iterator[Callable[[], Finding]]:
    """Tries the export in a process of its own, which gives its memory back; what is given waits for its finding."""
    from engine.launch import environment

    spec.write(place / "spec.json")
    variables = environment(spec.plan)
    del variables["SLIPWAY_LAUNCHER"]  # the end of the ranks ends everything that carries it
    variables["TMPDIR"] = str(place)  # so that it leaves nothing, even when it is killed
    with (place / "log.txt").open("wb") as log:
        words = [sys.executable, "-m", "tasks.preflight", str(place)]
        process = subprocess.Popen(words, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def finding() -> Finding:
        status = process.wait()
        if status == 0:
            return Finding(**read_json(place / "finding.json"))
        said = " | ".join((place / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
        remedy = "free some, or see what it said last"
        return Finding("export", "failed", f"it ended with {status}: {said}", "killed, perhaps for want of memory", remedy)

    try:
        yield finding
    finally:
        process.kill()
        process.wait()


def summary(report: Report) -> str:
    """How many checks ended how, and how long the training will take."""
    states = [one.state for one in report.findings]
    told = ", ".join(f"{states.count(state)} {state}" for state in get_args(State) if state in states)
    return told + (f"; the training takes about {clock(report.estimate.seconds)}" if report.estimate else "")


def needs(estimate: Estimate, spec: RunSpec, settings: Settings, hardware: Hardware) -> list[Finding]:
    """Whether the machine has what the run will take; `hardware` is as it was before."""
    there = next(place for place in [Path(spec.output).absolute(), *Path(spec.output).absolute().parents] if place.exists())
    return [
        duration(estimate),
        memory(estimate, hardware, device=spec.plan.device),
        disk(estimate, keep=settings.train.keep_checkpoints, free=shutil.disk_usage(there).free, place=there),
    ]


def duration(estimate: Estimate) -> Finding:
    """How long the training will take."""
    told = (
        f"about {clock(estimate.seconds)}: {estimate.num_steps:,} steps of {estimate.step_seconds:.3f} s and "
        f"{estimate.num_validations} validations of {estimate.validation_seconds:.1f} s"
    )
    return Finding("time", "passed", told)


def memory(estimate: Estimate, hardware: Hardware, *, device: str) -> Finding:
    """Whether what the first steps and a validation took leaves room."""
    name = "memory"
    if device == "cuda":
        whole = min(device.memory for device in hardware.devices)
        told = f"{estimate.memory / GIB:.1f} of the {whole / GIB:.1f} GiB of the fullest GPU"
        if estimate.memory <= FULL * whole:
            return Finding(name, "passed", told)
        return Finding(
            name, "failed", told, "a larger batch would not fit", "lower plan.micro_batch, or the size of the samples"
        )
    told = f"{estimate.memory / GIB:.1f} GiB in all ranks, {hardware.free_memory / GIB:.1f} were free"
    if estimate.memory <= hardware.free_memory:
        return Finding(name, "passed", told)
    remedy = "close other programs, lower plan.ranks or plan.micro_batch, or make the samples smaller"
    return Finding(name, "failed", told, "the machine would write memory to the disk, or kill a rank", remedy)


def disk(estimate: Estimate, *, keep: int, free: int, place: Path) -> Finding:
    """Whether checkpoints (those kept, the one being written and the one the stage keeps) and weights find room; bytes."""
    name = "disk"
    needed = estimate.checkpoint * (keep + 2) + estimate.weights * COPIES_OF_WEIGHTS
    told = (
        f"{needed / GIB:.2f} GiB for {keep + 2} checkpoints of {estimate.checkpoint / GIB:.2f} and for the weights, "
        f"{free / GIB:.1f} free on the disk of {place}"
    )
    if needed <= free:
        return Finding(name, "passed", told)
    return Finding(name, "failed", told, "the disk is too small or too full", "make room, or lower train.keep_checkpoints")


def publishing(settings: PublishSettings, *, workload: str) -> Finding:
    """Whether the target can be reached and, where that can be tried without leaving anything, written."""
    from tasks.publishing.registry import open_registry

    name = "publishing"
    try:
        registry = open_registry(settings, workload=workload)
        said = registry.check()
        tried = try_writing(registry)
    except SlipwayError as error:
        return Finding(name, "failed", str(error), "the target is wrong, away or not yours to write", "set publish.target")
    return Finding(name, "passed", said + tried)


def try_writing(registry: object) -> str:
    """Write a small file into the registry's place and remove it; gives what to say of it.

    Raises:
        SlipwayError: when it cannot be written.
    """
    from tasks.publishing.registry import LocalRegistry, StoreRegistry

    if isinstance(registry, LocalRegistry):
        home = registry.home.absolute()
        place = next(one for one in [home, *home.parents] if one.exists())
        try:
            with tempfile.NamedTemporaryFile(prefix=".slipway-", dir=place) as file:
                file.write(b"probe")
        except OSError as error:
            raise SlipwayError(f"publish.target: {place} cannot be written: {error}") from None
        return "; a file was written and removed"
    if isinstance(registry, StoreRegistry):
        _try_store(registry.files, registry.home, registry._try)
        return "; a file was written and removed"
    return ""  # on the hub every file is a commit; it has been asked instead


def _try_store(files: object, home: str, attempt: Callable[[Callable[[], object]], object]) -> None:
    """Write and remove a file in `home`, or in the nearest folder above it where folders must exist before their files."""
    probe, place = f".slipway-{uuid.uuid4().hex[:12]}", home
    while True:
        path = f"{place}/{probe}"
        try:
            attempt(lambda path=path: files.pipe_file(path, b"probe"))  # pyright: ignore[reportAttributeAccessIssue]
        except FileNotFoundError:
            if "/" not in place.strip("/"):
                raise SlipwayError(f"publish.target: {home} cannot be written: there is no such place") from None
            place = place.rsplit("/", 1)[0]
            continue
        attempt(lambda path=path: files.rm_file(path))  # pyright: ignore[reportAttributeAccessIssue]
        return


def export(spec: RunSpec) -> Finding:
    """Whether the graphs of the untrained objective, exported, compute what torch computes on a few records."""
    name = LAST
    try:
        worst, num = _exported(spec)
    except Exception as error:
        first = _first(error)
        why = str(first) if isinstance(first, SlipwayError) else f"{type(first).__name__}: {first}"
        cause = "an operation that the exporter cannot write, or writes as something else (a branch on data, random numbers)"
        remedy = (
            "try another export.opset, or write Workload.graphs without it: `slipway preflight` is quicker than training"
        )
        return Finding(name, "failed", " ".join(why.split())[:600], cause, remedy)
    return Finding(
        name, "passed", f"the largest difference from torch is {worst:.1e} of an output's range over {num} records"
    )


def _first(error: BaseException) -> BaseException:
    """What an error began with: the exporter wraps it in pages of its own."""
    return _first(error.__cause__) if error.__cause__ else error


def _exported(spec: RunSpec) -> tuple[float, int]:
    """The largest difference, and the number of records."""
    import torch

    from tasks.export import write_artifact
    from tasks.shipping.parity import check_parity
    from tasks.shipping.recording import spread
    from tasks.trained import Trained

    torch.set_num_threads(1)
    workload = load(spec.workload)
    settings = validate(workload.Settings, spec.settings, where=spec.workload)
    records = Records.open(Path(spec.records), root=Path(spec.root))
    split = next((name for name in ("val", "test", "train") if len(records.split(name))), "train")
    untrained = Trained(spec.workload, workload, settings, spec.facts, spread(records.split(split), NUM_RECORDS))
    torch.manual_seed(settings.train.seed)
    objective = workload.build(settings, spec.facts, pretrained=True).eval()
    graphs = workload.graphs(objective, settings, spec.facts)
    with tempfile.TemporaryDirectory(prefix="slipway-export-") as place:
        write_artifact(Path(place), graphs, workload=untrained.name, settings=untrained.settings, facts=untrained.facts)
        parity = check_parity(untrained, graphs, Path(place))
    return parity["worst"], parity["num_records"]


def spec_of(workload: str) -> tuple[RunSpec, Settings]:
    """The run that `train` would make now, and the settings of params.yaml.

    Raises:
        SlipwayError: when the stages before it have not run.
    """
    from tasks.plan import current_plan
    from tasks.training import training_run

    settings = settings_of(workload)
    return training_run(workload, settings, current_plan(workload, settings)), settings


def main(place: Path) -> None:
    """What the process does that tries the export: spec.json of a folder to finding.json."""
    from engine.worker import end_with_parents

    end_with_parents()
    write_json(place / "finding.json", asdict(export(RunSpec.read(place / "spec.json"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

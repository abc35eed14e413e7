"""The plan stage: looks at the machine, lays the training out on it, and says why in a report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete, write_json
from contracts.plan import Hardware, Plan, as_dict
from contracts.settings import Settings
from contracts.workload import settings_of
from engine.choosing import choose, table
from engine.deepspeed_config import deepspeed_config
from engine.hardware import detect
from engine.planning import look_around, plan, unmet
from tasks.stage import folder, stage_main
from tasks.training import training_run

GIB = 1 << 30
WIDTH = 100
TITLES = {
    "backend": "Backend",
    "device": "Device",
    "ranks": "Ranks",
    "replicas": "Models per rank",
    "micro_batch": "Batch per rank",
    "accumulation": "Gradient accumulation",
    "threads": "Threads per rank",
    "workers": "Loaders per rank",
    "prefetch": "Prefetch",
    "precision": "Precision",
    "compile": "Compiled",
    "activation_checkpointing": "Recomputing",
    "compress_gradients": "Compressed gradients",
    "zero_stage": "ZeRO stage",
    "offload": "Offload",
    "restarts": "Restarts",
    "hang_seconds": "Hung after seconds",
}


def run(workload: str, *, measure: bool = False, anew: bool = False) -> None:
    """Write plan.json, hardware.json and report.txt of a workload, and print the report.

    With `measure` rival plans are timed; with `anew` one that was measured before is not taken.
    """
    settings = settings_of(workload)
    hardware = detect()
    spec_for = partial(training_run, workload, settings)
    chosen = choose(workload, settings, hardware, spec_for, measure=measure, anew=anew)
    text = report(hardware, {workload: chosen.plan}, [*chosen.lines, *table(chosen.rows)])
    with replace_when_complete(folder("plan", workload)) as temporary:
        chosen.plan.write(temporary / "plan.json")
        write_json(temporary / "hardware.json", as_dict(hardware))
        (temporary / "report.txt").write_text(text, encoding="utf-8")
        if chosen.plan.backend == "deepspeed":
            config = deepspeed_config(chosen.plan, clip_norm=settings.train.clip_norm)
            write_json(temporary / "deepspeed.json", config)
    print(text, end="")


def current_plan(workload: str, settings: Settings, hardware: Hardware | None = None) -> Plan:
    """The plan that the plan stage made, if it is for this machine and these settings; otherwise a new one, and says so."""
    hardware = hardware or detect()
    path = folder("plan", workload) / "plan.json"
    try:
        made = Plan.read(path)
    except FileNotFoundError:
        why = f"{path} is not there"
    except (ValueError, TypeError) as error:
        why = f"{path} cannot be read ({error})"
    else:
        why = _unfit(made, settings, hardware)
        if why is None:
            return made
        why = f"{path} is for {why}"
    anew = plan(hardware, settings.train, settings.plan, installed=look_around(hardware))
    print(f"plan: {why}; made anew for this machine: {summary(anew)}", flush=True)
    return anew


def _unfit(made: Plan, settings: Settings, hardware: Hardware) -> str | None:
    """What a plan was made for, where that is not this machine and these settings."""
    if made.hardware != hardware.fingerprint:
        return f"another machine ({made.hardware})"
    if made.global_batch != settings.train.global_batch:
        return f"a global batch of {made.global_batch}, not {settings.train.global_batch}"
    if made.micro_batch % settings.train.ghost_batch:
        return f"another ghost batch than {settings.train.ghost_batch}"
    wish = unmet(made, settings.plan)
    return f"other wishes than plan.{wish}" if wish else None


def summary(made: Plan) -> str:
    """A plan in one line."""
    layout = f"{made.ranks} x {made.micro_batch} x {made.accumulation} (ranks x batch x accumulation)"
    return f"{made.backend} on {made.device}, {layout}, {made.precision}"


def report(hardware: Hardware, plans: Mapping[str, Plan | SlipwayError], measured: Sequence[str] = ()) -> str:
    """Hardware and plans as a page of text; a workload that cannot be planned shows why. `measured` are lines of their own."""
    lines = ["=" * WIDTH, "HARDWARE DETECTION RESULTS", "=" * WIDTH, *_gpu_lines(hardware), *_machine_lines(hardware)]
    for workload, made in plans.items():
        lines += _plan_lines(workload, made)
    if measured:
        lines += [*_heading("MEASURED"), *(part for line in measured for part in _wrapped(line))]
    return "\n".join([*lines, "=" * WIDTH]) + "\n"


def _gpu_lines(hardware: Hardware) -> Iterator[str]:
    yield from _heading("GPU CONFIGURATION")
    yield _line("Number of GPUs", str(len(hardware.devices)))
    if hardware.devices:
        yield _line("Total GPU memory", f"{sum(one.memory for one in hardware.devices) / GIB:.1f} GiB")
        yield _line("Smallest GPU", f"{min(one.memory for one in hardware.devices) / GIB:.1f} GiB")
    if hardware.driver:
        yield _line("Driver", hardware.driver)
    for one in hardware.devices:
        yield ""
        yield f"  GPU {one.index}: {one.name}"
        yield f"       Memory: {one.memory / GIB:.1f} GiB (free: {one.free / GIB:.1f} GiB)"
        yield f"       Compute: {'.'.join(map(str, one.capability))}"
    for note in hardware.notes:
        yield from textwrap.wrap(f"note: {note}", WIDTH, initial_indent="  ", subsequent_indent="        ")


def _machine_lines(hardware: Hardware) -> Iterator[str]:
    yield from _heading("PROCESSOR, MEMORY AND DISK")
    yield _line("Processor", hardware.cpu)
    yield _line("Cores this process may use", str(hardware.cores))
    yield _line("Native bf16", "yes" if hardware.bf16_cpu else "no")
    yield _line("Memory", f"{hardware.memory / GIB:.1f} GiB (free: {hardware.free_memory / GIB:.1f} GiB)")
    yield _line("Free disk", f"{hardware.free_disk / GIB:.1f} GiB")
    yield _line("Platform", hardware.platform)


def _plan_lines(workload: str, made: Plan | SlipwayError) -> Iterator[str]:
    yield from _heading(f"TRAINING PLAN: {workload}")
    if isinstance(made, SlipwayError):
        yield from _wrapped(f"no plan: {made}")
        return
    for name, title in TITLES.items():
        yield from _reasoned(title, getattr(made, name), made.reasons.get(name, ""))
    yield from _reasoned("Global batch", made.global_batch, "as params.yaml sets it, whatever the hardware")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ", drop_whitespace=True)


def _heading(title: str) -> list[str]:
    return ["", title.center(WIDTH).rstrip(), "-" * WIDTH]


def _line(title: str, value: str) -> str:
    return f"  {title + ':':<28}{value}"


def _reasoned(title: str, value: object, reason: str) -> list[str]:
    """A value and, beside it, why; the reason is broken into lines of its own column."""
    lines = textwrap.wrap(reason, WIDTH - 35) or [""]
    return [f"  {title + ':':<24}{value!s:<7}  {lines[0]}".rstrip(), *(" " * 35 + line for line in lines[1:])]


if __name__ == "__main__":
    stage_main(run)

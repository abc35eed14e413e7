"""Stage quantize: the ladder of recipes, each judged on val by accuracy and by the clock; the fastest that is good enough ships."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from contracts.errors import SlipwayError
from contracts.files import read_json, replace_when_complete, write_json
from contracts.records import Records
from contracts.settings import QuantizeSettings
from contracts.workload import Arrays, Metric, Run
from serving.runtime import open_run
from tasks.shipping.latency import interleaved, laps, one_torch_thread
from tasks.shipping.quantizing import dynamic_int8, static_int8, weight_only_int4
from tasks.shipping.recording import Call, calls, spread
from tasks.shipping.storing import copy_model, num_bytes, with_data
from tasks.stage import folder, stage_main
from tasks.trained import Trained

# The inputs of a graph, by its name, one sample at a time.
Calibration = Callable[[str], Iterator[Arrays]]


@dataclass(frozen=True)
class Candidate:
    """A row of candidates.json. `status`: "chosen", "inside" (good enough, but another is faster), "refused" or "skipped".

    `loss_share` is the part of fp32's metric given away; `speedup` is over fp32 in the same measurement; latency in ms.
    """

    name: str
    status: Literal["chosen", "inside", "refused", "skipped"]
    reason: str
    metric: float | None = None
    loss_share: float | None = None
    latency_ms: float | None = None
    fp32_latency_ms: float | None = None
    speedup: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Bench:
    """What every candidate is judged against: fp32 on the val split, and real calls to time."""

    trained: Trained
    source: Path
    records: Records
    reference: float
    laps: Sequence[Sequence[Call]]
    calibration: Calibration

    @property
    def settings(self) -> QuantizeSettings:
        return self.trained.settings.quantize


def run(workload: str, *, calibration: Calibration | None = None) -> None:
    """Write data/quantize/`workload`: the artifact that ships, candidates.json, comparison.json.

    `calibration` replaces the inputs that train records give (a test of the gate).

    Raises:
        SlipwayError: when nothing was exported, or a split that is needed is empty.
    """
    trained, source = Trained.open(workload), exported(workload)
    fp32 = open_run(source)
    test = trained.split("test", why="comparing the shipped model with torch")
    bench = make_bench(trained, source, fp32, calibration)
    with replace_when_complete(folder("quantize", workload)) as output:
        scratch = output / "candidates"
        scratch.mkdir(parents=True)
        candidates = climb(bench, scratch)
        winner = best(candidates)
        rows = compare_on_test(bench, test, fp32, scratch / winner.name if winner else None, winner)
        candidates, winner = last_word(bench, candidates, winner, rows)
        ship(output, scratch / winner.name if winner else source)
        refused = write_results(output, bench, candidates, winner, rows)
        shutil.rmtree(scratch)
    print(f"{workload}: {shipping(candidates, winner)}")
    if refused:
        print(f"{workload}: will not be published: {refused}")


def exported(workload: str) -> Path:
    """The folder of an export that passed its parity."""
    source = folder("export", workload)
    if not (source / "parity.json").is_file() or not read_json(source / "parity.json")["passed"]:
        raise SlipwayError(
            f"{source} holds no export that passed its parity check: run python -m tasks.export {workload} first"
        )
    return source


def make_bench(trained: Trained, source: Path, fp32: Run, calibration: Calibration | None) -> Bench:
    """Score fp32 on val and record what is replayed for timing."""
    val = trained.split("val", why="choosing among quantized models")
    train = trained.split("train", why="calibration")
    reference = trained.metric(fp32, val, "scoring fp32 on val")
    found = calibration or recorded_calibration(trained, fp32, train)
    return Bench(trained, source, val, reference, laps(trained, fp32, val), found)


def recorded_calibration(trained: Trained, run: Run, train: Records) -> Calibration:
    """What measuring feeds to each graph for some train records: their preparation cannot differ from that in use."""

    def samples(graph: str) -> Iterator[Arrays]:
        records = spread(train, trained.settings.quantize.num_calibration)
        return (call.inputs for call in calls(trained, run, records) if call.graph == graph)

    return samples


def climb(bench: Bench, scratch: Path) -> list[Candidate]:
    """Every recipe that is set, built and scored in order, then all of them timed in turn with fp32, and judged."""
    if fault := bench.trained.workload.metric.fault(bench.reference):
        return [Candidate(recipe, "skipped", f"fp32 on val: {fault}") for recipe in bench.settings.recipes]
    candidates: list[Candidate] = []
    for recipe in bench.settings.recipes:
        for name, build in variants(recipe, bench):
            candidates.append(scored(name, build, bench, scratch))
            if candidates[-1].status == "skipped" or (candidates[-1].loss_share or 0.0) <= bench.settings.budget:
                break
    built = [one.name for one in candidates if one.metric is not None]
    homes = {"fp32": bench.source, **{name: scratch / name for name in built}}
    times: Mapping[str, float] = {}
    if built:
        runs = {name: open_run(home, threads=1) for name, home in homes.items()}
        times = interleaved(runs, bench.laps, seconds=bench.settings.timing_seconds)
    candidates = [judged(one, times, bench) if one.name in times else one for one in candidates]
    for one in candidates:
        print(f"{one.name}: {one.status}: {one.reason}")
    return candidates


def variants(recipe: str, bench: Bench) -> list[tuple[str, Callable[[Path, Path, str], None] | str]]:
    """The ways of one recipe, each tried only where the one before costs too much of the metric: a name, and what writes a
    graph (source, target, graph's name), or the reason to skip it."""

    def static(*keep: str) -> Callable[[Path, Path, str], None]:
        return lambda source, target, graph: static_int8(source, target, bench.calibration(graph), keep=keep)

    if recipe == "int8":
        return [(recipe, static("behind"))]
    if recipe == "int8_wide_head":
        return [(recipe, static("behind", "last")), (f"{recipe}_and_first", static("behind", "last", "first"))]
    if recipe == "int8_dynamic":
        return [(recipe, lambda source, target, graph: dynamic_int8(source, target))]
    if recipe == "fp16":
        return [(recipe, half_precision(bench.trained))]
    return [(recipe, four_bits(bench.source))]


def four_bits(source: Path) -> Callable[[Path, Path, str], None] | str:
    """Stores the weights of language decoders in 4 bits, and leaves other graphs as they are."""
    graphs = read_json(source / "artifact.json")["graphs"]
    decoders = {name for name, graph in graphs.items() if graph.get("language_decoder")}
    if not decoders:
        return "int4 is for the weights of language decoders, and no graph of this model is one"

    def build(source: Path, target: Path, graph: str) -> None:
        (weight_only_int4 if graph in decoders else copy_model)(source, target)

    return build


def half_precision(trained: Trained) -> Callable[[Path, Path, str], None] | str:
    """Exports the torch modules in half precision, where the runtime computes in it."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "ONNX Runtime computes on the CPU here, where fp16 is only converted to fp32 and back"
    from tasks.shipping.half import write_half

    graphs = trained.graphs()
    return lambda source, target, graph: write_half(graphs[graph], target, trained.settings.export)


def scored(name: str, build: Callable[[Path, Path, str], None] | str, bench: Bench, scratch: Path) -> Candidate:
    """Build one candidate and score it on val."""
    if isinstance(build, str):
        return Candidate(name, "skipped", build)
    home = scratch / name
    artifact = read_json(bench.source / "artifact.json")
    (home / "graphs").mkdir(parents=True)
    try:
        for graph, described in artifact["graphs"].items():
            build(bench.source / described["file"], home / described["file"], graph)
    except Exception as error:  # whatever the libraries raise: a recipe that fails on a graph is refused, the others go on
        return Candidate(name, "refused", f"could not be built: {type(error).__name__}: {error}")
    write_json(home / "artifact.json", with_data({**artifact, "recipe": name}, home))
    metric = bench.trained.metric(open_run(home), bench.records, f"scoring {name} on val")
    share = bench.trained.workload.metric.loss_share(metric, bench.reference)
    return Candidate(name, "inside", "not timed yet", metric, share, bytes=num_bytes(home))


def judged(candidate: Candidate, times: Mapping[str, float], bench: Bench) -> Candidate:
    """A scored candidate held against the budget and the clock."""
    assert candidate.metric is not None
    own, fp32 = times[candidate.name], times["fp32"]
    metric = bench.trained.workload.metric
    status, reason = verdict(metric, bench.settings, candidate.metric, bench.reference, fp32 / own)
    timed = {"latency_ms": own, "fp32_latency_ms": fp32, "speedup": fp32 / own}
    return replace(candidate, status=status, reason=reason, **timed)


def verdict(
    metric: Metric, settings: QuantizeSettings, value: float, reference: float, speedup: float
) -> tuple[Literal["inside", "refused"], str]:
    """Whether a candidate may ship, and why, in words."""
    if fault := metric.fault(reference):
        return "refused", f"fp32: {fault}"
    share = metric.loss_share(value, reference)
    numbers = f"{metric.name} {value:.4f}, fp32 {reference:.4f}"
    if not share <= settings.budget:
        return "refused", f"loses {share:.1%} of {metric.name}, the budget is {settings.budget:.1%} ({numbers})"
    if not speedup >= settings.min_speedup:
        return "refused", f"{speedup:.2f} times as fast as fp32, at least {settings.min_speedup:g} is wanted ({numbers})"
    return "inside", f"{speedup:.2f} times as fast as fp32, {numbers}"


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest of those that are good enough."""
    return max((one for one in candidates if one.status == "inside"), key=lambda one: one.speedup or 0.0, default=None)


def compare_on_test(
    bench: Bench, test: Records, fp32: Run, home: Path | None, winner: Candidate | None
) -> list[dict[str, Any]]:
    """Rows of comparison.json: torch, fp32 and the winner on the test split, by all metrics, timed in turn on one thread."""
    import torch

    from engine.torch_runtime import torch_run
    from engine.weights import weight_bytes

    trained, graphs = bench.trained, bench.trained.graphs()
    contenders: list[tuple[str, Run, int]] = [
        ("torch", torch_run(graphs, "cuda" if torch.cuda.is_available() else "cpu"), weight_bytes(trained.objective)),
        ("fp32", fp32, num_bytes(bench.source)),
    ]
    if home and winner:
        contenders.append((winner.name, open_run(home), num_bytes(home)))
    metrics = {name: trained.metrics(run, test, f"scoring {name} on test") for name, run, _ in contenders}
    single = {"torch": torch_run(graphs, "cpu"), "fp32": open_run(bench.source, threads=1)}
    if home and winner:
        single[winner.name] = open_run(home, threads=1)
    with one_torch_thread():
        times = interleaved(single, bench.laps, seconds=bench.settings.timing_seconds)
    main = trained.workload.metric.name
    return [
        {"name": name, "metric": found[main], "bytes": size, "latency_ms": times[name], "metrics": found}
        for name, _, size in contenders
        for found in (metrics[name],)
    ]


def last_word(
    bench: Bench, candidates: Sequence[Candidate], winner: Candidate | None, rows: Sequence[dict[str, Any]]
) -> tuple[list[Candidate], Candidate | None]:
    """The winner marked as chosen, or refused after all where the test split shows that val was kind to it. Another one is
    not tried then: choosing by the test split would make it a second val."""
    if winner is None:
        return list(candidates), None
    fp32, own = (next(row for row in rows if row["name"] == name) for name in ("fp32", winner.name))
    metric, speedup = bench.trained.workload.metric, fp32["latency_ms"] / own["latency_ms"]
    relaxed = bench.settings.model_copy(update={"min_speedup": 1.0})
    status, reason = verdict(metric, relaxed, own["metric"], fp32["metric"], speedup)
    kept = status == "inside"
    replaced = replace(winner, status="chosen") if kept else replace(winner, status="refused", reason=f"on test: {reason}")
    return [replaced if one is winner else one for one in candidates], replaced if kept else None


def ship(output: Path, home: Path) -> None:
    """Copy the artifact that ships into the stage's folder."""
    shutil.copytree(home / "graphs", output / "graphs", ignore=shutil.ignore_patterns("*.engine"))
    shutil.copy(home / "artifact.json", output / "artifact.json")


def write_results(
    output: Path, bench: Bench, candidates: Sequence[Candidate], winner: Candidate | None, rows: Sequence[dict[str, Any]]
) -> str | None:
    """candidates.json and comparison.json; gives the reason for which publish will refuse what ships."""
    metric, settings = bench.trained.workload.metric, bench.settings
    chosen = winner.name if winner else "fp32"
    common = {"metric": metric.name, "chosen": chosen, "budget": settings.budget, "min_speedup": settings.min_speedup}
    told = {**common, "split": "val", "reference": bench.reference, "reason": shipping(candidates, winner)}
    write_json(output / "candidates.json", {**told, "rows": [asdict(one) for one in candidates]})
    shown = [row for row in rows if row["name"] in ("torch", "fp32", chosen)]
    reason = objection(metric, settings.budget, bench.reference, shown)
    gate = {"passed": reason is None, "reason": reason}
    write_json(output / "comparison.json", {**common, "split": "test", "rows": shown, **gate})
    return reason


def objection(metric: Metric, budget: float, reference: float, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why what ships must not be published, or None: the gate of comparison.json.

    `reference` is fp32's metric on val; `rows` are those of the test split, torch first and what ships last.
    """
    torch, shipped = rows[0], rows[-1]
    for name, split, value in (("fp32", "val", reference), *((row["name"], "test", row["metric"]) for row in rows)):
        if fault := metric.fault(value):
            return f"{name} on {split}: {fault}"
    share = metric.loss_share(shipped["metric"], torch["metric"])
    if share <= budget:
        return None
    return f"{shipped['name']} loses {share:.1%} of torch's {metric.name} on test, the budget is {budget:.1%}"


def shipping(candidates: Sequence[Candidate], winner: Candidate | None) -> str:
    """One sentence: what ships and why."""
    if winner:
        return f"{winner.name} ships: {winner.reason}"
    if not candidates:
        return "fp32 ships: quantize.recipes is empty"
    return "fp32 ships: " + "; ".join(f"{one.name} {one.status}: {one.reason}" for one in candidates)


if __name__ == "__main__":
    stage_main(run)

"""The loop: the same weights however a run is divided or interrupted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.run import RunResult, RunSpec
from engine import beacon, telemetry, validation
from engine import launch as launching
from engine import loop as engine_loop
from engine.checkpoint import Checkpoints
from engine.launch import environment, launch
from engine.loop import Loop, _StopRequest
from engine.telemetry import CudaTelemetry
from engine.tracking import read_journal
from engine.weights import save_weights
from tests.engine import planted
from tests.engine.planted import LARGEST_BATCH, plant
from tests.engine.test_telemetry import SmallGpu, SmallMemory, SmallNvml
from tests.engine.tiny_workload import Shipped, Tiny, TinyObjective

MakeSpec = Callable[..., RunSpec]


@pytest.fixture(autouse=True)
def _signals_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    torch.set_num_threads(1)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _last_state(spec: RunSpec) -> dict[str, Any]:
    _, state = Checkpoints(Path(spec.output) / "checkpoints", fingerprint=spec.fingerprint).load() or (0, {})
    return state


def _train(spec: RunSpec) -> dict[str, torch.Tensor]:
    """The weights after a run in this process."""
    Path(spec.output).mkdir(parents=True, exist_ok=True)
    assert Loop(spec).run() is not None
    return _last_state(spec)["weights"]


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def _start(spec: RunSpec) -> subprocess.Popen[bytes]:
    Path(spec.output).mkdir(parents=True, exist_ok=True)
    path = Path(spec.output) / "spec.json"
    spec.write(path)
    return subprocess.Popen(launching.command(spec.plan, path), env=environment(spec.plan))


def _wait_for_step(spec: RunSpec, step: int, process: subprocess.Popen[bytes]) -> None:
    journal = Path(spec.output) / "metrics.jsonl"
    for _ in range(1200):
        lines = read_journal(journal)
        if lines and lines[-1]["step"] >= step:
            return
        assert process.poll() is None, f"the run ended with {process.returncode} before step {step}"
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within 60 s")


def test_the_same_seed_trains_the_same_weights(make_tiny_spec: MakeSpec) -> None:
    assert _difference(_train(make_tiny_spec("one")), _train(make_tiny_spec("other"))) == 0


def test_another_seed_trains_other_weights(make_tiny_spec: MakeSpec) -> None:
    assert _difference(_train(make_tiny_spec("one")), _train(make_tiny_spec("other", seed=1))) > 1e-3


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_the_micro_batch_does_not_change_what_is_learnt(make_tiny_spec: MakeSpec, micro_batch: int) -> None:
    assert (
        _difference(
            _train(make_tiny_spec("small", epochs=1)),
            _train(make_tiny_spec("large", epochs=1, micro_batch=micro_batch)),
        )
        < 1e-5
    )


def test_the_losses_that_are_logged_do_not_depend_on_the_micro_batch(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weighed(self: TinyObjective, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = torch.nn.functional.cross_entropy(self.logits(batch["rows"]), batch["labels"], reduction="none")
        weights = 1.0 + 3 * (batch["labels"] == 0)
        return {"loss": (weights * rows).sum() / weights.sum(), "weight": weights.sum()}

    monkeypatch.setattr(TinyObjective, "forward", weighed)
    specs = [make_tiny_spec(f"by {size}", micro_batch=size) for size in (2, 8)]
    assert [spec.plan.accumulation for spec in specs] == [4, 1]
    losses = []
    for spec in specs:
        _train(spec)
        losses.append([line["loss"] for line in read_journal(Path(spec.output) / "metrics.jsonl") if "loss" in line])
    assert len(losses[0]) == len(losses[1]) == 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_of_two_ranks_only_the_first_writes_what_belongs_to_the_run(
    make_tiny_spec: MakeSpec, train: Callable[..., RunResult]
) -> None:
    spec = make_tiny_spec("ranks", ranks=2, checkpoint_minutes=0)
    result, output = train(spec, planted="writing"), Path(spec.output)
    first, second = ((output / f"writing-{rank}").read_text().split() for rank in (0, 1))
    assert {"metrics.jsonl", "best.safetensors", "result.json"} <= set(first)
    assert {place for place in first if place.startswith("checkpoints/step-") and "/" not in place[12:]}
    assert first.index("best.safetensors") < first.index("checkpoints/step-000000005"), (
        "no checkpoint before what it knows of"
    )
    assert {place.split("/")[0] for place in second} <= {"beacons"}, "its own beacon, and nothing of the run"
    lines = read_journal(output / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, result.steps + 1))
    assert [line["step"] for line in lines if "accuracy" in line] == [5, 10]


@pytest.mark.parametrize(("rule", "rate"), [("linear", 0.05 / 4), ("sqrt", 0.05 / 2)])
def test_a_run_with_another_global_batch_learns_at_the_rate_that_its_rule_gives(
    make_tiny_spec: MakeSpec, rule: str, rate: float
) -> None:
    ruled = make_tiny_spec("ruled", epochs=1, learning_rate=rate, learning_rate_rule=rule, reference_batch=2)
    plain = make_tiny_spec("plain", epochs=1)
    assert plain.plan.global_batch == 8
    assert _difference(_train(ruled), _train(plain)) == 0
    logged, wanted = (
        [line.get("learning_rate") for line in read_journal(Path(spec.output) / "metrics.jsonl")] for spec in (ruled, plain)
    )
    assert logged == wanted


CPU_ROW = {"device_memory_gib", "device_utilization_percent"}
GPU_ROW = {*CPU_ROW, "device_memory_peak_gib", "device_memory_used_gib", "device_power_watts"}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_row_of_a_run_has_losses_rate_speed_waiting_and_its_device(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    forward = TinyObjective.forward

    def in_parts(self: TinyObjective, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kinds, size = forward(self, batch)["loss"], self.last.weight.square().mean()
        return {"loss": kinds + size, "loss_kinds": kinds.detach(), "loss_size": size.detach()}

    monkeypatch.setattr(TinyObjective, "forward", in_parts)
    if device == "gpu":
        card = CudaTelemetry(0, ["a"], memory=SmallMemory(), nvml=SmallNvml(SmallGpu("GPU-a")))
        monkeypatch.setattr(telemetry, "_cpu", lambda: card)
    spec = make_tiny_spec(warmup_epochs=0.4)
    _train(spec)
    rows = [line for line in read_journal(Path(spec.output) / "metrics.jsonl") if "loss" in line]
    losses, timing = {"loss", "loss_kinds", "loss_size"}, {"samples_per_second", "step_seconds", "data_wait_share"}
    wanted = (
        {"step", "epoch", "learning_rate", "gradient_norm"} | losses | timing | (GPU_ROW if device == "gpu" else CPU_ROW)
    )
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row.keys() == wanted
        assert row["loss"] == pytest.approx(row["loss_kinds"] + row["loss_size"])
        assert row["samples_per_second"] == pytest.approx(8 / row["step_seconds"], rel=0.01)
        assert 0 < row["data_wait_share"] < 1
        assert row["device_memory_gib"] > 0 and 0 <= row["device_utilization_percent"] <= 100
        assert row.get("device_power_watts", 300) == 300
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] < max(rates) == pytest.approx(0.05, rel=0.05) and rates[-1] == pytest.approx(0.05 * 0.01)


def test_killed_in_mid_epoch_and_resumed_gives_the_bits_of_the_uninterrupted_run(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = _train(make_tiny_spec("whole", epochs=3))
    spec = make_tiny_spec("killed", epochs=3, checkpoint_minutes=0)
    plant(monkeypatch, "slow")
    process = _start(spec)
    _wait_for_step(spec, 7, process)
    process.kill()
    process.wait()
    interrupted_at = Checkpoints(Path(spec.output) / "checkpoints", fingerprint="one").found()[-1].step
    assert 0 < interrupted_at < 12
    assert _difference(reference, _train(spec)) == 0
    steps = [line["step"] for line in read_journal(Path(spec.output) / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1))


def test_sigterm_saves_and_the_same_command_goes_on(make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "slow")
    spec = make_tiny_spec("stopped", epochs=40)
    process = _start(spec)
    _wait_for_step(spec, 4, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert "stopped at step" in read_json(Path(spec.output) / "interrupted.json")["message"]
    step = Checkpoints(Path(spec.output) / "checkpoints", fingerprint="one").found()[-1].step
    assert step >= 4
    assert not (Path(spec.output) / "result.json").exists()


def test_the_best_weights_are_written_while_training_goes_on(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: list[str] = []

    def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        writers.append(f"{threading.current_thread().name}: {path.name}")
        save_weights(tensors, path)

    monkeypatch.setattr(engine_loop, "save_weights", save)
    _train(make_tiny_spec("best", epochs=1))
    assert writers == ["checkpoint-5: best.safetensors"]


def test_while_a_split_is_scored_its_rank_says_so_and_not_that_it_validates(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who scores cannot say how it gets on, and may take longer than who validates."""
    said: list[str] = []
    score = Tiny.score

    def listed(*arguments: Any) -> Any:
        said.append("score")
        return score(*arguments)

    monkeypatch.setattr(Tiny, "score", listed)
    monkeypatch.setattr(validation, "mark", lambda phase, **_: said.append(phase))
    _train(make_tiny_spec("scored", epochs=1))
    assert said[-4:] == ["validating", beacon.SCORING, "score", "validating"]


def test_another_runs_checkpoint_is_refused(make_tiny_spec: MakeSpec) -> None:
    _train(make_tiny_spec("run", epochs=1))
    with pytest.raises(SlipwayError, match="fingerprint is one, this run's is two"):
        Loop(make_tiny_spec("run", fingerprint="two", epochs=1)).run()


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_records(make_tiny_spec: MakeSpec) -> None:
    loop = Loop(make_tiny_spec("diverged", epochs=1))
    with torch.no_grad():
        next(loop.backend.objective.parameters()).fill_(float("nan"))
    with pytest.raises(SlipwayError, match=r"loss is nan in step 0.*row-"):
        loop.run()


def _train_without_every_fourth(spec: RunSpec, *, labelled: bool) -> dict[str, torch.Tensor]:
    """The weights after a run whose every fourth micro-batch weighs nothing; without labels, its loss is no number."""
    Path(spec.output).mkdir()
    loop, calls = Loop(spec), [0]
    plain = loop.backend.forward

    def forward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls[0] += 1
        if calls[0] % 4:
            return {**plain(batch), "weight": torch.tensor(2.0)}
        output = plain(batch if labelled else {**batch, "labels": torch.full_like(batch["labels"], -100)})
        assert output["loss"].isnan() != labelled
        return {**output, "weight": torch.zeros(())}

    loop.backend.forward = forward
    assert loop.run() is not None
    return _last_state(spec)["weights"]


def test_a_micro_batch_without_labels_counts_for_nothing(make_tiny_spec: MakeSpec) -> None:
    specs = {labelled: make_tiny_spec(str(labelled), epochs=1) for labelled in (True, False)}
    learnt = [_train_without_every_fourth(spec, labelled=labelled) for labelled, spec in specs.items()]
    assert _difference(*learnt) == 0
    journals = [read_journal(Path(spec.output) / "metrics.jsonl") for spec in specs.values()]
    losses = [[line["loss"] for line in journal if "loss" in line] for journal in journals]
    assert losses[0] == losses[1] and len(losses[0]) == 5


@pytest.mark.parametrize(("fault", "norm"), [(planted.gradient_is_no_number, "nan"), (planted.gradient_too_large, "inf")])
def test_a_gradient_that_is_not_a_number_or_too_large_stops_the_run_in_its_step_before_anything_is_saved(
    make_tiny_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None], norm: str
) -> None:
    monkeypatch.setattr(TinyObjective, "forward", TinyObjective.forward)  # put back afterwards
    spec = make_tiny_spec("steep", checkpoint_minutes=0)
    loop = Loop(spec)
    fault()
    words = rf"the norm of its gradient is {norm}, in step 1 \(loss .*the batch begins with row-"
    with pytest.raises(SlipwayError, match=words):
        loop.run()
    loop.checkpoints.wait()
    assert [found.step for found in loop.checkpoints.found()] == [1]
    assert all(value.isfinite().all() for value in _last_state(spec)["weights"].values())


def test_a_failure_in_a_rank_is_the_error_of_the_launch(make_tiny_spec: MakeSpec) -> None:
    spec = make_tiny_spec("failing", ranks=2, ghost_batch=1)
    with pytest.raises(
        SlipwayError, match="training failed on rank .*batch-norm layers: train.ghost_batch must be 2 or more"
    ):
        launch(spec)


def test_patience_stops_a_run_that_no_longer_gains(make_tiny_spec: MakeSpec) -> None:
    spec = make_tiny_spec("patient", epochs=30, patience=2, learning_rate=1e-9, ema_decay=0)
    Path(spec.output).mkdir(parents=True)
    result = Loop(spec).run()
    assert result is not None
    assert result.stopped_early
    assert result.epochs < 10


def test_a_loss_whose_parts_change_on_the_way_is_refused(make_tiny_spec: MakeSpec) -> None:
    loop = Loop(make_tiny_spec("changing"))
    plain = loop.backend.forward

    def changing(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = plain(batch)
        return {**output, "late": output["loss"].detach()} if loop.standing.step == 3 else output

    loop.backend.forward = changing
    with pytest.raises(SlipwayError, match=r"gave .*late.* in step 3 .*must be the same in every step"):
        loop.run()


def test_a_batch_of_which_nothing_counts_is_refused_with_its_records(make_tiny_spec: MakeSpec) -> None:
    loop = Loop(make_tiny_spec("nothing"))
    plain = loop.backend.forward
    loop.backend.forward = lambda batch: {**plain(batch), "weight": torch.zeros(())}
    with pytest.raises(SlipwayError, match=r"nothing counts in step 0: none of its samples \(.+, \.\.\.\) has a label"):
        loop.run()


@pytest.mark.parametrize(("backend", "layout"), [("single", {}), ("dp", {"replicas": 2})])
def test_where_memory_runs_out_in_one_process_the_step_is_done_again_with_half_the_micro_batch(
    make_tiny_spec: MakeSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backend: str,
    layout: dict[str, Any],
) -> None:
    how = {"backend": backend, "layout": layout, "global_batch": 16, "micro_batch": 2 * LARGEST_BATCH}
    undisturbed = _train(make_tiny_spec("undisturbed", **how))
    for module in (TinyObjective, Shipped):
        monkeypatch.setattr(module, "forward", module.forward)  # to be put back
    planted.memory()
    assert _difference(_train(make_tiny_spec("short", **how)), undisturbed) < 1e-6
    step = (planted.FAILING_CALL - 1) // 4
    assert f"memory ran out in step {step}: going on with micro-batches of 2 instead of 4" in capsys.readouterr().out


def test_two_ranks_meet_once_a_step(make_tiny_spec: MakeSpec, train: Callable[..., RunResult]) -> None:
    spec = make_tiny_spec("meeting", ranks=2, epochs=4, checkpoint_minutes=100)
    train(spec)
    met = beacon.read(Path(spec.output) / "beacons" / "rank-1.beacon")
    assert met is not None
    between = " ".join("step" if name == "all-reduce of gradients" else "other" for name in met.history).split("other")
    assert max(len(part.split()) for part in between) >= 4, met.history


def test_recomputing_activations_changes_nothing(make_tiny_spec: MakeSpec) -> None:
    plain = _train(make_tiny_spec("plain", epochs=1))
    assert _difference(plain, _train(make_tiny_spec("recomputed", epochs=1, layout={"activation_checkpointing": True}))) == 0


def test_memory_is_saved_where_activations_are_recomputed(make_tiny_spec: MakeSpec) -> None:
    def kept(spec: RunSpec) -> int:
        loop, sizes = Loop(spec), [0]
        loop._stop, loop.journal = _StopRequest(), None
        loop._open_feed()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loop.backend.forward(next(loop._batches)[1])
        return sizes[0]

    recomputed = kept(make_tiny_spec("recomputed", layout={"activation_checkpointing": True}))
    assert recomputed < 0.6 * kept(make_tiny_spec("plain"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("cl")), reason="torch.compile needs a C++ compiler, and there is none"
)
def test_a_compiled_objective_learns_the_same(make_tiny_spec: MakeSpec) -> None:
    compiled = make_tiny_spec("compiled", epochs=1, layout={"compile": True})
    assert _difference(_train(make_tiny_spec("plain", epochs=1)), _train(compiled)) < 1e-5


def test_bf16_learns_nearly_the_same(make_tiny_spec: MakeSpec) -> None:
    spec = make_tiny_spec("half", epochs=1)
    half = _train(replace(spec, plan=replace(spec.plan, precision="bf16")))
    assert 0 < _difference(_train(make_tiny_spec("full", epochs=1)), half) < 0.05
    assert all(value.dtype == torch.float32 for value in half.values() if value.is_floating_point())

"""Memory is measured: what a model takes, where it runs out, and the largest micro-batch that fits on every rank."""

from __future__ import annotations

import gc
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contracts.errors import SlipwayError
from contracts.files import write_json
from contracts.run import RunSpec
from engine import choosing, fitting, memory, probing
from engine import loop as engine_loop
from engine.memory import LIMIT, LiveBytes, footprint, limited, model_footprint
from engine.planning import Footprint
from engine.probing import Probed, probe, searched
from tests.engine.tiny_workload import Shipped, Tiny, TinyObjective, TinySettings, tiny_spec

MakeSpec = Callable[..., RunSpec]
CPU = torch.device("cpu")
KIB = 1024
SCORING_BYTES = 4096 * KIB


def network() -> nn.Module:
    """Two layers of 256 KiB."""
    return nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False))


def test_living_tensors_are_counted_once_and_the_dead_not() -> None:
    with LiveBytes() as counted:
        one = torch.zeros(KIB)
        view = one[:10].view(2, 5)
        two = one + 1
        assert counted.live == 8 * KIB
        del one
        assert counted.live == 8 * KIB  # the view holds it
        del view, two
    assert (counted.live, counted.peak) == (0, 8 * KIB)


def test_gradients_that_the_backward_makes_are_counted() -> None:
    objective = network()
    with LiveBytes() as counted:
        objective(torch.zeros(4, 256)).sum().backward()
    gc.collect()
    assert counted.live == 2 * 512 * KIB


def test_beyond_the_limit_memory_runs_out_in_the_backward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = network()
    monkeypatch.setenv(LIMIT, str(800 * KIB))
    with limited(CPU):
        loss = objective(torch.zeros(4, 256)).sum()  # 512 KiB of weights
        with pytest.raises(torch.OutOfMemoryError, match="819200 are allowed by SLIPWAY_MEMORY_LIMIT"):
            loss.backward()


def test_without_the_variable_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT, raising=False)
    with limited(CPU) as counted:
        assert counted is None
        assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "states"), [(lambda p: torch.optim.AdamW(p), 2), (lambda p: torch.optim.SGD(p, lr=1, momentum=0.9), 1)]
)
def test_a_models_sizes_are_known_without_building_it(kind: Any, states: int) -> None:
    found = model_footprint(network, lambda module: kind(module.parameters()), averages=True)
    size = 512 * KIB
    steps = found.optimizer - states * size  # AdamW also counts its steps
    assert (found.weights, found.average, found.validation) == (size, size, size)
    assert 0 <= steps < 100
    assert "meta device" in found.notes[0]


def test_a_model_that_reads_its_own_values_is_really_built_and_said_so() -> None:
    def build() -> nn.Module:
        made = network()
        assert float(next(made.parameters()).sum()) != 7
        return made

    found = model_footprint(build, lambda module: torch.optim.SGD(module.parameters(), lr=1), averages=False)
    assert (found.weights, found.optimizer, found.average) == (512 * KIB, 0, 0)
    assert "a model built for it" in found.notes[0]


def test_frozen_weights_need_no_gradients() -> None:
    def build() -> nn.Module:
        made = network()
        made.get_submodule("0").requires_grad_(False)
        return made

    found = model_footprint(
        build, lambda module: torch.optim.AdamW(value for value in module.parameters() if value.requires_grad), averages=True
    )
    assert (found.weights, found.frozen, found.validation) == (256 * KIB, 256 * KIB, 512 * KIB)


@pytest.mark.slow
def test_the_footprint_foretells_the_memory_of_another_batch(make_spec: MakeSpec) -> None:
    from engine import memory

    spec = make_spec()
    found = footprint(spec)
    workload = memory.load(spec.workload)
    settings = memory.validate(workload.Settings, spec.settings, where="segmentation")
    seen = memory._peaks(spec, workload, settings, (8,))[8]
    foretold = found.workspace + 2 * found.weights + found.frozen + 8 * found.sample
    assert foretold == pytest.approx(seen, rel=0.1)
    objective = workload.build(settings, spec.facts, pretrained=False)
    assert found.weights == 4 * sum(value.numel() for value in objective.parameters() if value.requires_grad)


def answering(threshold: int) -> tuple[Callable[[Path], int], list[int]]:
    """Ranks on which at most `threshold` samples fit, and the list of what they are asked."""
    asked: list[int] = []

    def start(folder: Path) -> int:
        found = Probed.read(folder)
        while found.next is not None:
            asked.append(found.next)
            found = found.decided(found.next, fits=found.next <= threshold)
        found.write(folder)
        return 0

    return start, asked


@pytest.mark.parametrize("num", [1, 2, 3, 7, 12])
def test_the_largest_is_found_in_log2_tries(num: int) -> None:
    candidates = tuple(2 * place for place in range(1, num + 1))
    for threshold in range(2 * num + 2):
        start, asked = answering(threshold)
        found = searched(candidates, start)
        assert found.micro_batch == max((one for one in candidates if one <= threshold), default=None)
        assert len(asked) <= math.floor(math.log2(num)) + 1


def dying(threshold: int, words: dict[str, Any] | None) -> tuple[Callable[[Path], int], list[int]]:
    """Ranks that end where more than `threshold` samples are tried, leaving `words` or none."""
    starts: list[int] = []

    def start(folder: Path) -> int:
        starts.append(1)
        found = Probed.read(folder)
        while found.next is not None:
            replace(found, trying=found.next).write(folder)
            if found.next > threshold:
                if words:
                    write_json(folder / "error-1.json", {"rank": 1, "time": 1.0, **words})
                (folder / "log.txt").write_text("what the ranks printed")
                return 1
            found = found.decided(found.next, fits=True)
            found.write(folder)
        return 0

    return start, starts


@pytest.mark.parametrize("words", [None, {"kind": "OutOfMemory", "message": "CUDA out of memory"}])
def test_what_kills_a_rank_does_not_fit_and_the_rest_is_tried_in_a_new_start(words: dict[str, Any] | None) -> None:
    start, starts = dying(4, words)
    found = searched((1, 2, 4, 8, 16), start)
    assert (found.micro_batch, found.fails, len(starts)) == (4, (16, 8), 2)


def test_a_rank_that_fails_for_another_reason_ends_the_probe_in_its_words(capfd: pytest.CaptureFixture[str]) -> None:
    start, _ = dying(1, {"kind": "ValueError", "message": "a picture is broken"})
    with pytest.raises(SlipwayError, match="rank 1: ValueError: a picture is broken"):
        searched((1, 2, 4), start)
    assert "what the ranks printed" in capfd.readouterr().err


@pytest.mark.slow
def test_a_rank_with_less_memory_decides_for_all(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 alone has a limit, which the footprint says lies between 4 and 8 samples (of a size beside which gradients are small)."""
    spec = make_spec(ranks=2, global_batch=16, image_size=128)
    found = footprint(spec)
    limit = (found.needed(4, "ddp", ranks=2) + found.needed(8, "ddp", ranks=2)) // 2
    code = f"import os\nif os.environ.get('RANK') == '1': os.environ['{LIMIT}'] = '{limit}'\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    outcome = probe(spec)
    assert outcome.candidates == (2, 4, 8)
    assert (outcome.micro_batch, outcome.fails) == (4, (8,))
    assert 0 < outcome.peak <= limit


class Roomy(Shipped):
    """Takes room of its own when it scores, and none in training."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) + torch.zeros(SCORING_BYTES // 4, device=rows.device)[0]


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Probed]:
    """Probes the tiny workload in this process, as a rank does that may have `limit` bytes."""
    spec = tiny_spec(tmp_path)

    def look(*candidates: int, limit: int, shipped: type[Shipped] = Shipped) -> Probed:
        def start(folder: Path) -> int:
            fitting.try_all(replace(spec, output=str(folder)))
            return 0

        workload = Tiny()
        workload.shipped = shipped
        monkeypatch.setattr(engine_loop, "load", lambda name: workload)
        monkeypatch.setenv(LIMIT, str(limit))
        return searched(candidates, start)

    return look


def test_what_fits_in_training_and_not_in_scoring_does_not_fit(tried: Callable[..., Probed]) -> None:
    limit = SCORING_BYTES // 2
    assert tried(2, 4, 8, limit=limit).micro_batch == 8
    assert tried(2, 4, 8, limit=limit, shipped=Roomy) == Probed((2, 4, 8), fails=(4, 2))
    assert tried(8, limit=2 * SCORING_BYTES, shipped=Roomy).peak > SCORING_BYTES


def test_what_fits_until_the_optimiser_has_its_state_does_not_fit(
    tried: Callable[..., Probed], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []
    for steps in (1, fitting.STEPS):
        monkeypatch.setattr(fitting, "STEPS", steps)
        peaks.append(tried(8, limit=1 << 40).peak)
    first, second = peaks
    state = 2 * 4 * sum(value.numel() for value in TinyObjective().parameters() if value.requires_grad)
    assert state / 2 < second - first <= state, "AdamW's two moments rest beside the second step's activations"
    between = (first + second) // 2
    assert tried(8, limit=between) == Probed((8,), fails=(8,))
    monkeypatch.setattr(fitting, "STEPS", 1)
    assert tried(8, limit=between).fits == (8,), "the first step alone, and scoring, have room"


class Hungry(TinyObjective):
    """Keeps `bytes_each` of every sample for the backward, twice."""

    bytes_each = 0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        room = self.last.bias[0] * batch["rows"].new_ones(len(batch["rows"]), self.bytes_each // 4)
        return {"loss": super().forward(batch)["loss"] + 0 * room.square().mean()}


class HungryLayer(nn.Module):
    """Passes on what it gets, and keeps two mebibytes of every sample for the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, spread: torch.Tensor) -> torch.Tensor:
        room = (self.scale * spread.new_ones(len(spread), 256 * KIB)).square()
        return spread * room.mean()


class HungryLayers(TinyObjective):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.extend(HungryLayer() for _ in range(6))


@pytest.mark.parametrize(("wish", "fits"), [("auto", True), (True, True), (False, False)])
def test_where_not_even_a_ghost_batch_fits_activations_are_computed_twice_if_the_wishes_leave_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Any, fits: bool
) -> None:
    workload, spec = Tiny(), tiny_spec(tmp_path, ghost_batch=4)
    workload.make_objective = HungryLayers
    settings = TinySettings.model_validate({**spec.settings, "plan": {"activation_checkpointing": wish}})
    spec = replace(spec, plan=replace(spec.plan, activation_checkpointing=wish is True))
    for module in (engine_loop, probing):
        monkeypatch.setattr(module, "load", lambda name: workload)
    monkeypatch.setattr(probing, "_run", lambda spec: fitting.try_all(spec) or 0)
    monkeypatch.setenv(LIMIT, str(36 << 20))  # six layers keep 48 MiB of four samples
    if not fits:
        with pytest.raises(SlipwayError, match="set plan.activation_checkpointing to true, lower train.ghost_batch"):
            choosing._probed(spec, settings)
        return
    made, lines = choosing._probed(spec, settings)
    assert (made.activation_checkpointing, made.micro_batch, made.accumulation) == (True, 4, 2)
    if wish == "auto":
        assert lines[0] == "probe: not even a ghost batch of 4 samples fits with activations kept"
        assert "a third more work: tried, not even" in made.reasons["activation_checkpointing"]


def test_a_model_that_cannot_be_run_twice_keeps_its_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(spec: RunSpec) -> None:
        assert spec.plan.activation_checkpointing
        raise RuntimeError("a hook ran twice")

    monkeypatch.setattr(memory, "footprint", refuses)
    assert choosing._recomputed(tiny_spec(tmp_path)) is None
    assert "activations of this model cannot be computed twice: RuntimeError: a hook ran twice" in capsys.readouterr().out


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


# A GPU's allocator gives and takes in pieces of 2 MiB: samples are to be larger.
@pytest.mark.parametrize(("device", "each"), [("cpu", 64 * KIB), pytest.param("cuda", 8192 * KIB, marks=NO_GPU)])
def test_what_is_found_to_fit_is_within_a_twentieth_of_the_most_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, each: int
) -> None:
    workload, limit = Tiny(), 256 * each
    workload.make_objective = Hungry
    monkeypatch.setattr(Hungry, "bytes_each", each)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # a run's own, which nobody would take away
    monkeypatch.setattr(engine_loop, "load", lambda name: workload)
    monkeypatch.setenv(LIMIT, str(limit))

    def run(micro_batch: int) -> RunSpec:
        spec = tiny_spec(tmp_path / str(micro_batch), ghost_batch=2, global_batch=micro_batch, epochs=1)
        return replace(spec, plan=replace(spec.plan, device=device, micro_batch=micro_batch, accumulation=1))

    def start(folder: Path) -> int:
        fitting.try_all(replace(run(candidates[-1]), output=str(folder)))
        return 0

    def trains(micro_batch: int) -> bool:
        """Whether a real run gets through its epoch, scoring included, without smaller micro-batches."""
        loop = engine_loop.Loop(run(micro_batch))
        with limited(torch.device(device)):
            result = loop.run()
        return result is not None and result.extra["micro_batch"] == micro_batch

    candidates = tuple(range(2, 256, 2))
    found = searched(candidates, start)
    assert len(found.fits) + len(found.fails) <= math.floor(math.log2(len(candidates))) + 1
    assert found.micro_batch is not None and found.fails
    assert trains(found.micro_batch)
    assert not trains(2 * math.ceil(found.micro_batch / 0.95 / 2))


@pytest.mark.parametrize(
    ("backend", "how", "expected"),
    [
        ("single", {}, 100 * 2 + 10 + 200 + 100 + 110),
        ("ddp", {"ranks": 2}, 100 * 2 + 10 + 200 + 100 + 110 + 100),
        ("fsdp", {"ranks": 2}, (100 * 2 + 10 + 200 + 100) / 2 + 110),
        ("fsdp", {"ranks": 2, "offload": "optimizer"}, 110),
        ("deepspeed", {"ranks": 2, "zero_stage": 1}, 110 + 100 + (100 + 200 + 100) / 2 + 110),
        ("deepspeed", {"ranks": 2, "zero_stage": 2}, 110 + (100 + 100 + 200 + 100) / 2 + 110),
        ("deepspeed", {"ranks": 2, "zero_stage": 3}, (110 + 100 + 100 + 200 + 100) / 2 + 110),
        ("deepspeed", {"ranks": 2, "zero_stage": 2, "offload": "optimizer"}, 110 + 110),
        ("deepspeed", {"ranks": 2, "zero_stage": 3, "offload": "parameters"}, 110),
    ],
)
def test_what_a_backend_divides_is_divided(backend: Any, how: dict[str, Any], expected: float) -> None:
    model = Footprint(weights=100, frozen=10, optimizer=200, average=100, validation=110, sample=7)
    assert model.resting(backend, **how) == expected
    assert model.needed(3, backend, **how) == expected + 21

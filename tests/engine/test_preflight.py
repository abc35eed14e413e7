"""The checks before a run: each planted fault is found by the check that is for it, and a sound run has none."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from contracts.plan import Plan
from contracts.preflight import Estimate, Finding
from contracts.records import Records
from contracts.run import RunSpec
from contracts.workload import Facts, Measure, Scores, names
from engine import loop as engine_loop
from engine.feeding import feed
from engine.preflight import examine
from engine.preflight.batches import digested, rank_batches
from engine.preflight.checks import check
from engine.preflight.learning import one_batch
from engine.preflight.lesson import Repeated
from engine.preflight.outputs import _alike_scored, _apart
from engine.preflight.rehearsal import Rehearsal
from tests.engine.tiny_workload import NUM_CLASSES, Shipped, Tiny, TinyDataset, TinyObjective, tiny_spec
from tests.engine.waiting_ranks import WaitingRanks

MakeSpec = Callable[..., RunSpec]
NAMES = [
    *("rank batches", "labels", "initial loss", "schedule", "gradients", "optimiser", "frozen parameters", "one batch"),
    *("saved weights", "teacher"),
]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """Makes the checks of a workload in this process; gives the findings by name."""

    def look(workload: Tiny, *, shortest: float = 0.0, **train: Any) -> dict[str, Finding]:
        monkeypatch.setattr(engine_loop, "load", lambda name: workload)
        told: list[Finding | Estimate] = []
        check(tiny_spec(tmp_path, **train), tell=told.append, shortest=shortest)
        return {one.name: one for one in told if isinstance(one, Finding)}

    return look


def failed(findings: dict[str, Finding]) -> list[str]:
    return [name for name, one in findings.items() if one.state == "failed"]


class Numbered(TinyDataset):
    """Tells of each sample which it is and how large it was, which nobody reads."""

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        serial = torch.arange(len(items))
        return {**super().collate(items), "serial": serial, "size": torch.stack([serial, 2 * serial], 1)}


class SameForAll(TinyDataset):
    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        return super().item(0, None, draw=draw, progress=progress)


class SameButForNoise(TinyDataset):
    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        return super().item(0, rng, draw=draw, progress=progress)


class AllMasked(TinyDataset):
    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        return {**super().item(index, rng, draw=draw, progress=progress), "labels": -100}


class SaysNothingCounts(TinyObjective):
    def supervised(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        return 0, len(batch["rows"])


class WeighsNothing(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**super().forward(batch), "weight": torch.zeros(())}


class NotANumber(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(batch)["loss"] * float("nan")}


class SummedLoss(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": functional.cross_entropy(self.logits(batch["rows"]), batch["labels"], reduction="sum")}


class WrongSign(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": -super().forward(batch)["loss"]}


class InParts(TinyObjective):
    """Says of a part of its loss, which is not all of it, where that begins."""

    expected_loss: ClassVar = {"loss_kinds": (0.0, math.log(NUM_CLASSES))}
    scale = 1.0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kinds = self.scale * super().forward(batch)["loss"]
        return {"loss": kinds + 1, "loss_kinds": kinds.detach()}


class SummedPart(InParts):
    scale = 4.0


class WrongSignOfAPart(InParts):
    scale = -1.0


class NamesNoPart(TinyObjective):
    expected_loss: ClassVar = {"loss_kinds": (0.0, 1.0)}


class Unused(TinyObjective):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Detached(TinyObjective):
    def features(self, rows: torch.Tensor) -> torch.Tensor:
        return super().features(rows).detach()


class TimesZero(TinyObjective):
    def __init__(self) -> None:
        super().__init__()
        self.silent = nn.Parameter(torch.ones(NUM_CLASSES))

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return super().logits(rows) + 0 * self.silent


class StartsAtZero(TinyObjective):
    """As an adapter of low rank: what comes before a layer of zeros has no gradient in the first step, and then it has."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.last.weight)


class Drifting(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.between.weight.mul_(0.999)
        return super().forward(batch)


class DropoutStaysOn(TinyObjective):
    def features(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.dropout(super().features(rows), 0.1, training=True)


class ForgetsItsScale(TinyObjective):
    def __init__(self) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def features(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.scale = self.scale * 1.1
        return super().features(rows) * self.scale


class TooLarge(TinyObjective):
    """Memory runs out with more than two samples."""

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if len(batch["rows"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(batch)


class DeafToItsRows(TinyObjective):
    """Every parameter trains, and yet all it can learn is how often each class is there."""

    def features(self, rows: torch.Tensor) -> torch.Tensor:
        return super().features(torch.ones_like(rows))


class ReadsItsLabels(TinyObjective):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = 5 * functional.one_hot(batch["labels"], NUM_CLASSES)
        return {"loss": functional.cross_entropy(self.logits(batch["rows"]) + given, batch["labels"])}


class LearnsItsBiasAlone(Tiny):
    """The optimiser has everything, with a learning rate of nothing but for the output's bias."""

    def optimizer(self, objective: nn.Module, settings: Any) -> torch.optim.Optimizer:
        trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
        bias = trained.pop("last.bias")
        still = {"params": list(trained.values()), "lr": 1e-12}
        return torch.optim.AdamW([{"params": [bias], "lr": 0.1}, still])


class DeafTeacher(TinyObjective):
    def teacher(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.ones(len(batch["rows"]))


class TeacherDeafToItsWords(TinyObjective):
    """Reads two things, and answers to one of them."""

    def teacher(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["rows"].sum(1) + 0 * batch["labels"]


class ManyMasked(TinyDataset):
    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        found = super().item(index, rng, draw=draw, progress=progress)
        return found if index % 5 > 1 else {**found, "labels": -100}


class KeepsCounting(Tiny):
    """What it counted in a scoring is not forgotten in the next one."""

    counted = 0

    def score(self, measures: Iterable[Measure], settings: Any, facts: Facts) -> Scores:
        measures = list(measures)
        self.counted += len(measures)
        return Scores({**super().score(measures, settings, facts).metrics, "num_rows": self.counted})


class Leaves(Tiny):
    def optimizer(self, objective: nn.Module, settings: Any) -> torch.optim.Optimizer:
        chosen = [value for name, value in objective.named_parameters() if value.requires_grad and "bias" not in name]
        return torch.optim.AdamW(chosen, settings.train.learning_rate)


class Climbs(Tiny):
    def optimizer(self, objective: nn.Module, settings: Any) -> torch.optim.Optimizer:
        chosen = [value for value in objective.parameters() if value.requires_grad]
        return torch.optim.AdamW(chosen, settings.train.learning_rate, maximize=True)


class PlainGradient(Tiny):
    def optimizer(self, objective: nn.Module, settings: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([value for value in objective.parameters() if value.requires_grad], 0.3, momentum=0.9)


def planted(**parts: Any) -> Tiny:
    """The tiny workload with a part exchanged."""
    workload = Tiny()
    for name, part in parts.items():
        setattr(workload, name, part)
    return workload


@pytest.mark.parametrize(
    "workload", [Tiny(), PlainGradient(), planted(make_objective=StartsAtZero), planted(make_objective=InParts)]
)
def test_a_sound_run_has_no_fault_and_every_check_applies(found: Any, workload: Tiny) -> None:
    findings = found(workload)
    assert list(findings) == NAMES
    assert {one.state for one in findings.values()} == {"passed"}, findings


@pytest.mark.parametrize(
    ("workload", "name", "words"),
    [
        (planted(make_dataset=SameForAll), "rank batches", "give only 1 different"),
        (planted(make_dataset=SameButForNoise), "rank batches", "1 different examples without augmentation"),
        (planted(make_dataset=AllMasked), "labels", "0.0% of the labels"),
        (planted(make_objective=SaysNothingCounts), "labels", "0.0% of the labels"),
        (planted(make_objective=WeighsNothing), "labels", "weight of the loss is 0"),
        (planted(make_objective=NotANumber), "initial loss", "nan"),
        (planted(make_objective=SummedLoss), "initial loss", "5\\.[0-9]+, .* has 1.386"),
        (planted(make_objective=WrongSign), "initial loss", "-1\\.[0-9]+, .* has 1.386"),
        (planted(make_objective=SummedPart), "initial loss", "loss_kinds 5\\.[0-9]+, .* has 0 to about 1.386"),
        (planted(make_objective=WrongSignOfAPart), "initial loss", "loss_kinds -1\\.[0-9]+, .* has 0 to about 1.386"),
        (planted(make_objective=NamesNoPart), "initial loss", "names loss_kinds, and the objective gives loss$"),
        (planted(make_objective=Unused), "gradients", "none for unused.bias, unused.weight of 12"),
        (planted(make_objective=Detached), "gradients", "none for blocks.0.convolution.weight, blocks.0.norm.bias"),
        (planted(make_objective=TimesZero), "gradients", "zero in every step for silent"),
        (Leaves(), "optimiser", "does not have first.bias, blocks.0.norm.bias, blocks.1.norm.bias and 1 more"),
        (planted(make_objective=Drifting), "frozen parameters", "between.weight of 2 changed"),
        (Climbs(), "one batch", "loss went from"),
        (LearnsItsBiasAlone(), "one batch", "in 40 steps, of which [-0-9.e]+ has to do with which input belongs"),
        (planted(make_objective=DeafToItsRows), "one batch", "whichever sample's rows a sample is given"),
        (planted(make_objective=ReadsItsLabels), "initial loss", "0\\.0[0-9]+, .* has 1.386"),
        (planted(make_objective=DropoutStaysOn), "saved weights", "outputs that differ"),
        (planted(make_objective=ForgetsItsScale), "saved weights", "outputs that differ"),
        (KeepsCounting(), "saved weights", "num_rows is [0-9]+ with loaded weights, [0-9]+ before"),
        (planted(make_objective=DeafTeacher), "teacher", "same of two different batches"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "make_objective", type(value)).__name__,
)
def test_a_planted_fault_is_found_by_its_check_with_cause_and_remedy(
    found: Any, workload: Tiny, name: str, words: str
) -> None:
    one = found(workload)[name]
    assert one.state == "failed"
    assert re.search(words, one.reason), one
    assert one.cause and one.remedy


def test_what_nobody_reads_is_worth_a_warning(found: Any) -> None:
    findings = found(planted(make_dataset=Numbered))
    assert failed(findings) == [] and findings["one batch"].state == "warning"
    assert "whichever sample's serial or size a sample is given" in findings["one batch"].reason


@pytest.mark.parametrize(
    ("losses", "grown", "knows"),
    [
        ((0.69, 0.06), 0.004, True),  # one pixel in a hundred is foreground: most of the fall is to have learnt that
        ((0.69, 0.06), 0.002, False),
        ((2.0, 1.8), 0.011, True),
        ((2.0, 1.8), 0.009, False),
    ],
)
def test_what_samples_must_matter_is_a_share_of_what_is_learnt_or_left_to_learn(
    losses: tuple[float, ...], grown: float, knows: bool
) -> None:
    assert Repeated(losses, {"labels": 0.0, "rows": grown}).knows_samples(0.05) == knows


def test_a_learning_rate_of_nearly_nothing_learns_no_batch(found: Any) -> None:
    findings = found(Tiny(), learning_rate=1e-12)
    assert failed(findings) == ["one batch"]
    assert "in 40 steps" in findings["one batch"].reason


@pytest.mark.parametrize(
    ("losses", "state"),
    [
        ([2.0, 1.7], "passed"),
        ([2.0, *[1.95] * 20], "not applicable"),  # a slow machine: the time was up
        ([2.0, *[2.0] * 3], "not applicable"),
        ([2.0, *[2.1] * 20], "failed"),
        ([2.0, *[1.95] * 40], "failed"),
        ([2.0, math.nan], "failed"),
    ],
)
def test_a_lesson_cut_short_is_no_fault_unless_its_loss_climbs(losses: list[float], state: str) -> None:
    assert one_batch(Repeated(tuple(losses)), 0.001).state == state


@pytest.mark.parametrize(
    ("steps", "grown", "state"), [(5, 0.3, "passed"), (40, 0.01, "failed"), (20, 0.01, "not applicable")]
)
def test_a_fall_that_has_nothing_to_do_with_the_samples_is_a_fault_once_all_steps_are_made(
    steps: int, grown: float, state: str
) -> None:
    assert one_batch(Repeated((2.0, *[1.5] * steps), {"rows": grown, "labels": 0.0}), 0.001).state == state


def test_a_warm_up_longer_than_the_run_is_a_schedule_that_does_not_end(found: Any) -> None:
    findings = found(Tiny(), warmup_epochs=4)
    assert failed(findings) == ["schedule"]
    assert "warm-up takes 32 steps, the run has 24" in findings["schedule"].reason


def test_the_rate_that_the_optimiser_really_had_in_the_last_step_is_judged(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "learning_rate_factor", lambda step, **schedule: 0.5)
    findings = found(Tiny())
    assert failed(findings) == ["schedule"]
    assert "50.00% of the learning rate, not 1.00%" in findings["schedule"].reason


def test_where_the_loss_is_no_number_the_rest_is_said_to_be_left_out(found: Any) -> None:
    findings = found(planted(make_objective=NotANumber))
    assert failed(findings) == ["initial loss"]
    assert findings["one batch"] == Finding("one batch", "not applicable", "not looked at: the loss is no number")


def test_what_an_objective_does_not_say_is_said_not_to_apply(found: Any) -> None:
    silent = type("Silent", (TinyObjective,), {"expected_loss": None, "teacher": None})
    findings = found(planted(make_objective=silent))
    assert {name for name, one in findings.items() if one.state == "not applicable"} == {"initial loss", "teacher"}
    assert not failed(findings)


def test_why_nothing_is_expected_of_a_loss_is_said_in_the_objectives_own_words(found: Any) -> None:
    wise = type("Wise", (TinyObjective,), {"expected_loss": "it has seen such rows before"})
    finding = found(planted(make_objective=wise))["initial loss"]
    assert finding.state == "not applicable"
    assert re.fullmatch(r"it is 1\.[0-9]+; it has seen such rows before", finding.reason)


@pytest.mark.parametrize(
    ("workload", "name", "words"),
    [
        (planted(make_dataset=ManyMasked), "labels", r"[0-9.]+% of the labels count: .*; [4-9] of 12 samples have none"),
        (
            planted(make_objective=TeacherDeafToItsWords),
            "teacher",
            r".*\(rows\), and says the same whatever labels is, which it",
        ),
    ],
)
def test_what_may_be_meant_is_a_warning_in_words_that_stops_nothing(
    found: Any, workload: Tiny, name: str, words: str
) -> None:
    findings = found(workload)
    assert not failed(findings)
    assert findings[name].state == "warning"
    assert re.match(words, findings[name].reason), findings[name]
    assert " -> " in findings[name].line()


def test_micro_batches_without_labels_are_counted_where_nobody_knows_it_of_samples(found: Any) -> None:
    class Sparse(TinyObjective):
        def supervised(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
            return (0 if batch["rows"][0, 0] < 0.5 else 1), len(batch["rows"])

    finding = found(planted(make_objective=Sparse))["labels"]
    assert finding.state == "warning"
    assert finding.reason.endswith("; 1 of 3 micro-batches have none")


def test_batches_that_may_have_no_labels_and_have_none_are_no_fault(found: Any) -> None:
    empty = type("Empty", (TinyObjective,), {"supervised": lambda self, batch: (0, 0)})
    finding = found(planted(make_objective=empty))["labels"]
    assert finding.state == "not applicable"
    assert finding.reason.startswith("there are none in 3 micro-batches")


def test_labels_are_counted_over_all_micro_batches_that_are_looked_at(found: Any) -> None:
    assert found(Tiny())["labels"].reason == "100.0% of the labels count: 12 of 12 in 3 micro-batches"
    few = type("Few", (TinyObjective,), {"supervised": lambda self, batch: (1, len(batch["rows"]))})
    assert found(planted(make_objective=few))["labels"].reason == "25.0% of the labels count: 3 of 12 in 3 micro-batches"


@pytest.mark.parametrize(
    ("before", "after", "alike"),
    [
        (0.5, 0.5005, True),
        (0.5, 0.51, False),
        (math.nan, math.nan, True),
        (0.5, math.nan, False),
        (math.nan, 0.5, False),
        (math.inf, math.inf, True),
    ],
)
def test_a_metric_that_is_no_number_is_like_no_other(before: float, after: float, alike: bool) -> None:
    assert _alike_scored(before, after) == alike


def test_outputs_that_are_masked_with_infinities_are_the_same_where_they_are() -> None:
    masked = np.array([[-np.inf, 0.0, np.nan, 2.0]], np.float32)
    assert _apart(masked, masked.copy()) == 0
    assert _apart(masked, np.array([[-np.inf, 0.0, np.nan, 1.0]], np.float32)) == 0.5
    assert _apart(masked, np.array([[0.0, 0.0, np.nan, 2.0]], np.float32)) == math.inf
    assert _apart(masked, np.array([[-np.inf, 0.0, 1.0, 2.0]], np.float32)) == math.inf


def test_a_short_run_is_measured_and_not_examined(found: Any) -> None:
    findings = found(planted(make_objective=Unused), shortest=1e6)
    assert findings["schedule"].state == "passed"
    assert findings["gradients"].state == "not applicable"
    assert "the training takes about" in findings["gradients"].reason


def test_memory_that_runs_out_is_no_fault_where_the_run_makes_its_batches_smaller(found: Any) -> None:
    findings = found(planted(make_objective=TooLarge))
    assert not failed(findings)
    assert findings["micro-batch"].reason == "memory ran out with 4 samples; the run will make them 2"
    assert "the run will make them smaller" in findings["labels"].reason
    assert findings["one batch"].state == "passed"


def test_a_second_objective_that_does_not_fit_is_no_fault(found: Any) -> None:
    class FitsOnce(Tiny):
        built = 0

        def build(self, settings: Any, facts: Any, *, pretrained: bool) -> TinyObjective:
            self.built += 1
            if self.built > 1:
                raise torch.OutOfMemoryError("out of memory")
            return super().build(settings, facts, pretrained=pretrained)

    findings = found(FitsOnce())
    assert not failed(findings)
    assert findings["schedule"].state == "passed"
    assert "one process cannot hold" in findings["gradients"].reason


def test_a_check_that_breaks_has_failed_and_stops_no_other(found: Any) -> None:
    broken = type("Broken", (Shipped,), {"forward": lambda self, rows: 1 / 0})

    class BrokenWhenLoaded(Tiny):
        def build(self, settings: Any, facts: Any, *, pretrained: bool) -> TinyObjective:
            self.shipped = Shipped if pretrained else broken
            return super().build(settings, facts, pretrained=pretrained)

    findings = found(BrokenWhenLoaded())
    assert failed(findings) == ["saved weights"]
    assert "ZeroDivisionError" in findings["saved weights"].reason
    assert findings["teacher"].state == "passed"


@pytest.mark.parametrize(("fed", "state"), [((0, 1), "passed"), ((0, 0), "failed")])
def test_ranks_that_are_fed_the_same_share_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fed: tuple[int, int], state: str
) -> None:
    monkeypatch.setattr(engine_loop, "load", lambda name: Tiny())
    spec = tiny_spec(tmp_path)
    loop = Rehearsal(spec)
    loop.plan = replace(spec.plan, ranks=2, accumulation=1)
    dataset = TinyDataset(loop.records)
    feeds = (feed(dataset, loop.stream, loop.plan, rank=rank, first_step=0, beacons=tmp_path) for rank in fed)
    shares = [[digested(samples, batch) for samples, batch in itertools.islice(one, 2)] for one in feeds]
    finding = rank_batches(loop, shares)
    assert finding.state == state
    assert state == "passed" or "read 4 twice or out of turn, and 4 not at all" in finding.reason


@pytest.mark.slow
def test_two_real_ranks_that_read_the_same_share_are_found(make_tiny_spec: MakeSpec, waiting: WaitingRanks) -> None:
    """tests/test_every_workload.py has sound ones."""
    findings = {one.name: one for one in waiting.check(make_tiny_spec(ranks=2), planted="same_share")}
    assert list(findings) == NAMES
    assert failed(findings) == ["rank batches"]
    assert "read 4 twice or out of turn, and 4 not at all" in findings["rank batches"].reason


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [{"optimizer": "AdamW", "learning_rate": 0.003}, {"optimizer": "SGD"}])
def test_segmentation_has_no_fault_with_either_optimiser(make_spec: MakeSpec, optimizer: dict[str, Any]) -> None:
    told: list[Finding | Estimate] = []
    spec = make_spec(epochs=6, **optimizer)
    check(spec, tell=told.append)
    findings = {one.name: one for one in told if isinstance(one, Finding)}
    assert list(findings) == NAMES
    assert not failed(findings), findings
    assert [name for name, one in findings.items() if one.state == "not applicable"] == ["teacher"]
    (estimate,) = (one for one in told if isinstance(one, Estimate))
    assert estimate.num_steps == math.ceil(
        6 * len(Records.open(Path(spec.records), root=Path(spec.root)).split("train")) / 8
    )
    assert estimate.num_validations == 6
    assert 0 < estimate.step_seconds < estimate.seconds
    assert estimate.memory > 1 << 28
    assert estimate.checkpoint > estimate.weights > 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name != "segmentation"])
def test_every_other_workload_has_no_fault_with_its_preset_small(small_examples: Any, tmp_path: Path, name: str) -> None:
    settings, examples = small_examples(name)
    plan = Plan("single", "cpu", 1, 4, settings.train.global_batch // 4, 1, 0, 1, "fp32", {})
    folders = {"records": str(examples.records), "root": str(examples.raw), "output": str(tmp_path)}
    told: list[Finding | Estimate] = []
    spec = RunSpec(name, settings.model_dump(mode="json"), examples.facts, **folders, plan=plan, fingerprint="one")
    check(spec, tell=told.append)
    findings = {one.name: one for one in told if isinstance(one, Finding)}
    assert list(findings) == NAMES
    assert not failed(findings), findings
    assert {name for name, one in findings.items() if one.state == "not applicable"} <= {"frozen parameters", "teacher"}
    assert re.fullmatch(r"[0-9.]+% of the labels count: .*", findings["labels"].reason)
    assert ", expected " in findings["initial loss"].reason


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["masks", "bboxes"])
def test_pictures_whose_objects_have_lost_their_masks_or_boxes_are_found(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from workloads.segmentation.dataset import SegmentationDataset

    read = SegmentationDataset.item

    def item(self: Any, index: int, rng: Any, **how: Any) -> dict[str, Any]:
        found = read(self, index, rng, **how)
        none = {"masks": found["masks"] * 0} if lost == "masks" else {key: found[key][:0] for key in ("cls", "bboxes")}
        return {**found, **none}

    monkeypatch.setattr(SegmentationDataset, "item", item)
    told: list[Finding | Estimate] = []
    check(make_spec(), tell=told.append, shortest=1e6)
    finding = next(one for one in told if isinstance(one, Finding) and one.name == "labels")
    assert finding.state == "failed"
    assert re.match(r"0\.0% of the labels count in 3 micro-batches, which have [0-9]+", finding.reason)


@pytest.mark.slow
def test_ranks_that_break_are_a_failed_finding_with_their_own_words(make_tiny_spec: MakeSpec) -> None:
    (finding,) = examine(make_tiny_spec(ghost_batch=1))
    assert isinstance(finding, Finding)
    assert finding.name == "training steps"
    assert finding.state == "failed"
    assert "train.ghost_batch must be 2 or more" in finding.reason

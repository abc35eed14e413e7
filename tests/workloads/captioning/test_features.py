"""What the frozen encoder says is computed once for each picture, by its content, and survives an interruption."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import SlipwayError
from contracts.plan import Plan
from contracts.run import RunSpec
from contracts.workload import HasShortcut, load
from engine.loop import Loop
from engine.torch_runtime import torch_run
from tests.workloads.captioning.conftest import Tiny, write_bases
from tests.workloads.captioning.test_generating import loud
from workloads.captioning import features as module
from workloads.captioning.bases import describe, loaded_models
from workloads.captioning.features import Features, keeps_features
from workloads.captioning.seeing import varied
from workloads.captioning.settings import CaptioningPrepare


def fresh(tiny: Tiny, folder: Path) -> Features:
    return Features.of(tiny.facts, folder)


def hashes(tiny: Tiny, rows: range) -> list[str]:
    return [tiny.records[row].inputs["sha256"] for row in rows]


def test_pictures_that_were_there_before_cost_nothing_and_new_ones_only_themselves(tiny: Tiny, tmp_path: Path) -> None:
    few, all_of_them = tiny.records.take(range(20)), tiny.records
    assert fresh(tiny, tmp_path).compute(few, tiny.facts, batch_size=8) == 20
    assert fresh(tiny, tmp_path).compute(few, tiny.facts, batch_size=8) == 0
    assert fresh(tiny, tmp_path).compute(all_of_them, tiny.facts, batch_size=8) == len(all_of_them) - 20
    whole = fresh(tiny, tmp_path / "whole")
    whole.compute(all_of_them, tiny.facts, batch_size=8)
    in_parts = fresh(tiny, tmp_path)
    for sha256 in hashes(tiny, range(len(all_of_them))):
        assert np.abs(in_parts.of_picture(sha256) - whole.of_picture(sha256)).max() < 2e-3


def test_an_interrupted_preparation_goes_on_where_it_stopped(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = module._encoded

    def interrupted(*arguments: Any) -> Any:
        for number, batch in enumerate(encoded(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh(tiny, tmp_path).compute(tiny.records, tiny.facts, batch_size=8)
    assert len(fresh(tiny, tmp_path)) == 0
    monkeypatch.setattr(module, "_encoded", encoded)
    writing = fresh(tiny, tmp_path).folder / "writing.f16"
    with writing.open("ab") as file:
        file.write(b"half a row")
    after = fresh(tiny, tmp_path)
    assert after.compute(tiny.records, tiny.facts, batch_size=8) == len(tiny.records) - 24
    whole = fresh(tiny, tmp_path / "whole")
    whole.compute(tiny.records, tiny.facts, batch_size=8)
    for sha256 in hashes(tiny, range(len(tiny.records))):
        assert np.array_equal(after.of_picture(sha256), whole.of_picture(sha256))


@pytest.mark.parametrize("harm", ["torn names", "no numbers", "too few numbers"])
def test_a_part_that_is_torn_is_not_there_and_harms_no_other(tiny: Tiny, tmp_path: Path, harm: str) -> None:
    for end in (10, 20, 30):
        fresh(tiny, tmp_path).compute(tiny.records.take(range(end)), tiny.facts, batch_size=8)
    folder = fresh(tiny, tmp_path).folder
    names, numbers = folder / "part-0.json", folder / "part-0.f16"
    if harm == "torn names":
        names.write_text(names.read_text()[:100])
    elif harm == "no numbers":
        numbers.unlink()
    else:
        numbers.write_bytes(numbers.read_bytes()[:-2])
    assert len(fresh(tiny, tmp_path)) == 20
    assert fresh(tiny, tmp_path).compute(tiny.records.take(range(30)), tiny.facts, batch_size=8) == 10
    whole = fresh(tiny, tmp_path / "whole")
    whole.compute(tiny.records.take(range(30)), tiny.facts, batch_size=8)
    mended = fresh(tiny, tmp_path)
    assert len(mended) == 30
    for sha256 in hashes(tiny, range(30)):
        assert np.abs(mended.of_picture(sha256) - whole.of_picture(sha256)).max() < 2e-3


def test_another_processor_or_encoder_has_features_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    other = json.loads(json.dumps(tiny.facts))
    other["picture"]["mean"] = [0.4, 0.4, 0.4]
    moved = json.loads(json.dumps(tiny.facts))
    moved["encoder"]["revision"] = "abc"
    folders = {Features.of(facts, tmp_path).folder for facts in (tiny.facts, other, moved)}
    assert len(folders) == 3


def test_a_disk_without_room_for_the_features_is_refused_before_a_picture_is_encoded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage, size = shutil.disk_usage(tmp_path), 9 * 32 * 2
    new = len({record.inputs["sha256"] for record in tiny.records})

    def free(num: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=num))

    def prepare() -> dict[str, Any]:
        return load("captioning").prepare(tiny.records, tiny.settings, {"embedded": True}, tmp_path)

    free(new * size - 1)
    with pytest.raises(
        SlipwayError, match=f"features of {new} pictures, 9 x 32 numbers each, take 0.00 GB, and the disk of .* 0.00"
    ):
        prepare()
    assert not list(tmp_path.iterdir())
    free(new * size)
    prepare()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.f16")) == new * size
    assert "features of" in capsys.readouterr().out
    free(0)
    prepare()  # all of them are there


def test_weights_that_were_trained_anew_in_the_same_folder_have_features_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    settings = CaptioningPrepare.model_validate(write_bases(tmp_path))
    before = describe(settings, tmp_path)
    assert describe(settings, tmp_path) == before
    Features.of(before, tmp_path).compute(tiny.records.take([0]), before, batch_size=1)
    weights = tmp_path / "encoder" / "model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    after = describe(settings, tmp_path)
    sha256 = hashes(tiny, range(1))[0]
    assert sha256 in Features.of(before, tmp_path) and sha256 not in Features.of(after, tmp_path)
    assert after["decoder"] == before["decoder"]
    with pytest.raises(SlipwayError, match=r"prepare.encoder: the weights in .*encoder are not those that prepare found"):
        loaded_models(before)
    loaded_models(after)


def test_what_a_step_reads_of_a_picture_is_mapped_from_the_file_that_keeps_it(tiny: Tiny) -> None:
    dataset = load("captioning").dataset(tiny.records, tiny.settings, tiny.facts, training=True)
    features = dataset.item(0, None, draw=0, progress=0)["features"]
    assert isinstance(features, np.memmap) and features.mode == "r"
    assert Path(str(features.filename)).parent == Features.of(tiny.facts, Path(tiny.facts["prepared"])).folder


def test_a_picture_without_features_is_named(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match="no features of the picture with SHA-256 00ff: run .* --force prepare"):
        fresh(tiny, tmp_path).of_picture("00ff")


@pytest.mark.parametrize("kept", [True, False])
def test_no_step_and_no_validation_of_any_epoch_asks_the_encoder_where_its_features_are_kept(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    prepare = tiny.settings.prepare.model_copy(update={"features": kept})
    settings = tiny.with_train(epochs=2, patience=0).model_copy(update={"prepare": prepare})
    plan = Plan("single", "cpu", 1, 4, settings.train.global_batch // 4, 1, 0, 1, "fp32", {})
    folders = {"records": str(tiny.folder / "parse"), "root": str(tiny.records.root), "output": str(tmp_path)}
    spec = RunSpec("captioning", settings.model_dump(mode="json"), tiny.facts, **folders, plan=plan, fingerprint="one")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    loop = Loop(spec)
    objective: Any = loop.backend.objective
    steps, asked = [], []
    objective.register_forward_hook(lambda *_: steps.append(objective.training))
    kind = type(objective.captioner.encoder)  # validation has a copy of the encoder, which hooks of this one do not see
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *given, **named: (asked.append(True), forward(*given, **named))[1])
    try:
        loop.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert sum(steps) >= 2 * len(tiny.records.split("train")) // 4, "two epochs, four pictures at a time"
    validated = 2 * math.ceil(len(tiny.records.split("val")) / settings.evaluate.batch_size)
    assert len(asked) == (0 if kept else len(steps) + validated)


@pytest.mark.parametrize("train", [{}, {"prefix_tokens": 1}])
def test_validation_by_kept_features_measures_what_the_graphs_that_ship_say(
    tiny: Tiny, objective: Any, train: dict[str, Any]
) -> None:
    settings, workload, records = tiny.with_train(**train), load("captioning"), tiny.records.split("val")
    assert isinstance(workload, HasShortcut)
    if train:
        torch.manual_seed(1)
        objective = loud(workload.build(settings, tiny.facts, pretrained=True))
    short = workload.shortcut(objective, settings, tiny.facts)
    assert short and "encoder" not in short.graphs
    run = torch_run(workload.graphs(objective, settings, tiny.facts), "cpu")
    expected = list(workload.measure(run, records, settings, tiny.facts))
    assert list(short.measure(torch_run(short.graphs, "cpu"), records)) == expected
    assert len({one["caption"] for one in expected}) > 1


NOT_KEPT = [{"train": {"augment": True}}, {"train": {"unfreeze_encoder": 1}}, {"prepare": {"features": False}}]


@pytest.mark.parametrize("change", NOT_KEPT, ids=str)
def test_where_features_are_not_used_none_are_written_and_the_projection_starts_alike(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    [(section, values)] = change.items()
    settings = tiny.settings.model_copy(update={section: getattr(tiny.settings, section).model_copy(update=values)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=0))
    workload = load("captioning")
    found = workload.prepare(tiny.records, settings, {"embedded": True}, tmp_path)
    assert not list(tmp_path.rglob("*.f16"))
    for name, values in tiny.facts["features"].items():
        assert found["features"][name] == pytest.approx(values, rel=1e-3, abs=1e-3)
    assert isinstance(workload, HasShortcut)
    assert workload.shortcut(workload.build(settings, tiny.facts, pretrained=True), settings, tiny.facts) is None


@pytest.mark.parametrize("change", [{"augment": True}, {"unfreeze_encoder": 1}])
def test_where_pictures_vary_or_the_encoder_learns_no_features_are_used(tiny: Tiny, change: dict[str, Any]) -> None:
    assert keeps_features(tiny.settings)
    assert not keeps_features(tiny.with_train(**change))
    dataset = load("captioning").dataset(tiny.records, tiny.with_train(**change), tiny.facts, training=True)
    drawn = [None, *map(np.random.default_rng, (0, 0, 1))]
    plain, first, again, other = items = [dataset.item(0, rng, draw=0, progress=0) for rng in drawn]
    batch = dataset.collate(items)
    assert "features" not in batch and batch["pixels"].shape == (4, 3, 48, 48)
    assert np.array_equal(first["pixels"], again["pixels"])
    for one, two in ((plain, first), (first, other)):
        assert np.array_equal(one["pixels"], two["pixels"]) is not change.get("augment", False)


def test_a_varied_picture_is_most_of_it_a_little_lighter_or_darker_never_mirrored_by_its_generator_alone() -> None:
    rising = np.tile(np.arange(100, dtype=np.uint8)[:, None], (100, 1, 3))
    plain = np.full((100, 100, 3), 240, np.uint8)
    seeds = range(20)
    parts, light = ([varied(one, np.random.default_rng(seed)) for seed in seeds] for one in (rising, plain))
    assert len({one.tobytes() for one in parts}) == len(seeds)
    assert all(np.array_equal(parts[seed], varied(rising, np.random.default_rng(seed))) for seed in seeds)
    for part in parts:
        assert part.dtype == np.uint8 and part.shape == (len(part), len(part), 3) and 80 <= len(part) <= 100
        assert (np.diff(part.astype(int), axis=1) >= 0).all()
    assert len({part.shape for part in parts}) > 1
    found = [int(one.min()) for one in light]
    assert found == [int(one.max()) for one in light], "alike everywhere"
    assert 0.85 * 240 <= min(found) < 240 and max(found) == 255, "and nothing is lighter than white"

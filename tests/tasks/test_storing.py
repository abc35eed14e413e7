"""Models with more weights than one file holds: every stage writes, opens, counts and publishes the second file too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from serving.runtime import open_run
from tasks import export, publish, quantize
from tasks.shipping import storing
from tasks.shipping.quantizing import weight_only_int4
from tasks.trained import Trained
from tests.tasks.digit_workload import NAME
from tests.tasks.test_export import LaidOut

EXPORTED, QUANTIZED = Path("data/export") / NAME, Path("data/quantize") / NAME
FILE, DATA = "graphs/classify.onnx", "graphs/classify.onnx.data"
PIXELS = np.random.default_rng(0).integers(0, 17, (3, 16, 16)).astype(np.uint8)


@pytest.fixture
def large(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits as if they were too large for one file, exported with a layout, and what they said before."""
    np.save("before.npy", open_run(EXPORTED)("classify", pixels=PIXELS)["scores"])
    monkeypatch.setattr(storing, "LARGEST", 4096)
    monkeypatch.setattr(workloads, "load", lambda name: LaidOut())
    write_json(Path("params.yaml"), {NAME: {"quantize": {"recipes": []}}})
    export.run(NAME)
    return exported


def test_large_weights_lie_beside_the_graph_and_it_says_the_same(large: Path) -> None:
    assert read_json(EXPORTED / "artifact.json")["graphs"]["classify"]["data"] == DATA
    alone = onnx.load(EXPORTED / FILE, load_external_data=False)
    assert (EXPORTED / DATA).stat().st_size > sum(one.ByteSize() for one in alone.graph.initializer)
    assert (EXPORTED / "layout/elsewhere/model.onnx.data").is_file()
    assert np.array_equal(open_run(EXPORTED)("classify", pixels=PIXELS)["scores"], np.load("before.npy"))
    (EXPORTED / DATA).unlink()
    with pytest.raises(SlipwayError, match=r"classify\.onnx\.data is missing, though artifact\.json names it"):
        open_run(EXPORTED)


def test_the_same_weights_give_the_same_two_files_and_a_shorter_one_leaves_none_behind(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained.open(NAME)
    for _ in range(2):
        export.write_onnx(trained.graphs()["classify"], tmp_path / "classify.onnx", trained.settings.export)
    for name in (FILE, DATA):
        assert (tmp_path / Path(name).name).read_bytes() == (EXPORTED / name).read_bytes()
    monkeypatch.setattr(storing, "LARGEST", 10**9)
    storing.write_model(onnx.load(EXPORTED / FILE), tmp_path / "classify.onnx")
    assert not storing.data_of(tmp_path / "classify.onnx").exists()


@pytest.mark.parametrize("recipe", ["int8", "int8_dynamic"])
def test_every_recipe_takes_and_writes_two_files(large: Path, recipe: str) -> None:
    trained = Trained.open(NAME)
    bench = quantize.make_bench(trained, EXPORTED, open_run(EXPORTED), None)
    [(_, build)] = quantize.variants(recipe, bench)
    candidate = quantize.scored(recipe, build, bench, Path("candidates"))
    home = Path("candidates") / recipe
    assert candidate.metric is not None and candidate.metric > 0.8 * bench.reference, candidate.reason
    assert read_json(home / "artifact.json")["graphs"]["classify"]["data"] == DATA
    assert candidate.bytes == (home / FILE).stat().st_size + (home / DATA).stat().st_size
    assert (home / DATA).stat().st_size < 0.5 * (EXPORTED / DATA).stat().st_size


def test_four_bits_go_into_two_files_and_what_is_small_enough_then_into_one(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "classify.onnx"
    for limit, two in ((4096, True), (10**9, False)):
        monkeypatch.setattr(storing, "LARGEST", limit)
        weight_only_int4(EXPORTED / FILE, target)
        assert storing.data_of(target).exists() == two
        kinds = [node.op_type for node in onnx.load(target).graph.node]
        assert kinds.count("MatMulNBits") == 1


def test_both_files_are_published_listed_and_part_of_what_makes_the_model(large: Path) -> None:
    quantize.run(NAME)
    assert read_json(QUANTIZED / "comparison.json")["rows"][-1]["bytes"] > (EXPORTED / DATA).stat().st_size
    report = Path("data/report") / NAME / "report.md"
    report.parent.mkdir(parents=True)
    report.write_text("# digits\n")
    publish.run(NAME)
    receipt = read_json(Path("data/publish") / NAME / "receipt.json")
    assert {FILE, DATA, "elsewhere/model.onnx", "elsewhere/model.onnx.data"} <= {file["path"] for file in receipt["files"]}
    home = Path(receipt["location"])
    assert f"`{FILE}` (weights: `{DATA}`)" in (home / "README.md").read_text()
    assert np.array_equal(open_run(home)("classify", pixels=PIXELS)["scores"], np.load("before.npy"))
    weights = bytearray((QUANTIZED / DATA).read_bytes())
    weights[-1] ^= 1
    (QUANTIZED / DATA).write_bytes(weights)
    publish.run(NAME)
    assert "same model" not in read_json(Path("data/publish") / NAME / "receipt.json")["reason"]

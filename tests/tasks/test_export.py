"""Stage export: the same bytes every time, an artifact that opens, and a parity check that refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.settings import ExportSettings, Settings
from contracts.workload import Arrays, Facts, Layout, Run
from serving.runtime import open_run
from tasks import export
from tasks.shipping import parity
from tasks.shipping.half import write_half
from tasks.shipping.parity import Deviation
from tasks.trained import Trained
from tests.tasks.digit_workload import NAME, Digits

if TYPE_CHECKING:
    from torch import nn

OUTPUT = Path("data/export") / NAME


def test_the_artifact_opens_and_describes_itself(exported: Path) -> None:
    artifact = read_json(OUTPUT / "artifact.json")
    assert artifact["workload"] == NAME and artifact["recipe"] == "fp32" and artifact["facts"]["classes"][3] == "3"
    assert artifact["graphs"]["classify"] == {
        "file": "graphs/classify.onnx",
        "inputs": {"pixels": {"dtype": "uint8", "shape": ["batch", 16, 16]}},
        "outputs": ["scores"],
    }
    assert artifact["preprocessing"] == {"classify": {"levels": 17}}
    assert open_run(OUTPUT)("classify", pixels=np.zeros((3, 16, 16), np.uint8))["scores"].shape == (3, 10)


def test_the_settings_that_travel_are_those_the_model_was_trained_with(project: Path) -> None:
    Path("params.yaml").write_text(f"{NAME}: {{train: {{seed: 7}}, quantize: {{budget: 0.5}}}}\n")
    settings = Trained.open(NAME).settings
    assert settings.train.seed == 0 and settings.quantize.budget == 0.5


def test_parity_holds_at_every_batch_size_and_for_the_metric(exported: Path) -> None:
    found = read_json(OUTPUT / "parity.json")
    assert found["passed"] and found["worst"] < 1e-5 and found["num_records"] == 64 and found["split"] == "val"
    assert [row["batch"] for row in found["batches"]] == [1, 2, 5]
    assert found["metric"]["torch"] == pytest.approx(found["metric"]["onnx"], abs=1e-6)


def test_the_same_weights_give_the_same_bytes_and_no_path_of_this_machine(exported: Path, tmp_path: Path) -> None:
    graph = Trained.open(NAME).graphs()["classify"]
    export.write_onnx(graph, tmp_path / "again.onnx", ExportSettings())
    content = (OUTPUT / "graphs" / "classify.onnx").read_bytes()
    assert content == (tmp_path / "again.onnx").read_bytes()
    assert b".py" not in content and str(Path(__file__).parents[2]).encode() not in content
    assert not any(node.doc_string or node.metadata_props for node in onnx.load_from_string(content).graph.node)


def test_beyond_the_tolerance_nothing_is_left_as_complete(exported: Path) -> None:
    Path("params.yaml").write_text(f"{NAME}: {{export: {{tolerance: 1.0e-12}}}}\n")
    with pytest.raises(
        SlipwayError, match=r"output 'scores' of graph 'classify' differs .* for record 'digit-\d+'.*allows 1e-12"
    ):
        export.run(NAME)
    assert not OUTPUT.exists() and not list(OUTPUT.parent.iterdir())


def test_a_file_of_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    import torch

    trained = Trained.open(NAME)
    graphs = trained.graphs()
    with torch.no_grad():
        next(graphs["classify"].module.parameters()).mul_(1.02)
    with pytest.raises(SlipwayError, match="differs from torch"):
        parity.check_parity(trained, graphs, OUTPUT)


class LaidOut(Digits):
    """Digits for a tool that calls them `images` and wants a batch of logarithms; `wrong` where the layout is mistaken."""

    wrong = False

    def layout(self, objective: nn.Module, settings: Settings, facts: Facts) -> Layout:
        graph = self.graphs(objective, settings, facts)["classify"]
        graph = dataclasses.replace(graph, inputs={"images": graph.inputs["pixels"]}, dynamic={"images": {0: "batch_size"}})

        def own(run: Run) -> Run:
            def call(name: str, /, **arrays: np.ndarray) -> Arrays:
                scores = run("elsewhere/model", images=arrays["pixels"])["scores"]
                return {"scores": np.roll(scores, 1, axis=1) if self.wrong else scores}

            return call

        return Layout({"elsewhere/model": graph}, own)


def test_a_layout_for_other_tools_is_measured_by_the_workloads_own_metric(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "load", lambda name: LaidOut())
    export.run(NAME)
    found = read_json(OUTPUT / "parity.json")["layout"]
    assert found["files"] == ["elsewhere/model.onnx"] and found["num_records"] == 200
    assert found["onnx"] == pytest.approx(found["torch"], abs=1e-6)
    assert (OUTPUT / "layout" / "elsewhere" / "model.onnx").is_file()
    monkeypatch.setattr(LaidOut, "wrong", True)
    with pytest.raises(
        SlipwayError, match=r"accuracy on val is 0\.\d+ for the files elsewhere/model and 0\.[89]\d+ for torch"
    ):
        export.run(NAME)
    assert not OUTPUT.exists()


def test_scores_are_not_excused_by_the_range_of_the_boxes() -> None:
    expected = np.zeros((1, 2, 3))
    expected[0, 0], expected[0, 1] = (0, 300, 600), (0, 0.5, 1)
    found = expected + np.array([[0], [0.1]])
    deviation = Deviation(by_channel=True)
    deviation.add("a picture", expected, found)
    assert deviation.worst() == (pytest.approx(0.1 / 1), "a picture", pytest.approx(0.1))
    whole = Deviation(by_channel=False)
    whole.add("a picture", expected, found)
    assert whole.worst()[0] == pytest.approx(0.1 / 600)


def test_nan_never_passes() -> None:
    deviation = Deviation(by_channel=False)
    deviation.add("a", np.array([0.0, 1.0]), np.array([0.0, np.nan]))
    with pytest.raises(SlipwayError, match="for record 'a'"):
        parity.judge("graph", "output", deviation, 1e-3)


def test_tensorrt_that_is_not_installed_is_said_and_the_export_stands(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    try:
        import tensorrt  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        Path("params.yaml").write_text(f"{NAME}: {{export: {{tensorrt: true}}}}\n")
        export.run(NAME)
        assert "tensorrt is not installed here" in capsys.readouterr().out and (OUTPUT / "parity.json").exists()
    else:
        pytest.skip("tensorrt is installed here")


def test_the_half_precision_file_keeps_inputs_and_outputs(exported: Path, tmp_path: Path) -> None:
    import onnxruntime

    graph = Trained.open(NAME).graphs()["classify"]
    write_half(graph, tmp_path / "half.onnx", ExportSettings())
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    pixels = np.full((3, 16, 16), 9, np.uint8)
    scores = np.asarray(session.run(["scores"], {"pixels": pixels})[0])
    assert scores.dtype == np.float32
    assert np.abs(scores - open_run(OUTPUT)("classify", pixels=pixels)["scores"]).max() < 2e-2
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * (OUTPUT / "graphs" / "classify.onnx").stat().st_size

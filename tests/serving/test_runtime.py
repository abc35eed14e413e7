"""A shipped model is opened by ONNX Runtime alone, and says what is wrong with it before work starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import SlipwayError
from serving.runtime import open_run
from tests.loading import loaded
from tests.serving.stand_in import SCORE, picture, write_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model")


def test_a_graph_is_called_by_name_and_gives_its_outputs_by_name(artifact: Path) -> None:
    outputs = open_run(artifact, threads=1)("segment", images=picture(64, 64, green=(8, 16, 40, 48))[None])
    assert {name: value.shape for name, value in outputs.items()} == {"predictions": (1, 10, 3), "protos": (1, 3, 16, 16)}
    assert outputs["predictions"][0, :4, 1].tolist() == [24, 32, 32, 32]
    assert outputs["predictions"][0, 4:7].max(1).tolist() == pytest.approx([0, SCORE, 0])


def test_the_batch_may_be_of_any_size(artifact: Path) -> None:
    run = open_run(artifact, threads=1)
    assert [len(run("segment", images=np.zeros((num, 64, 64, 3), np.uint8))["protos"]) for num in (1, 5)] == [1, 5]


def test_it_runs_on_the_processor_where_there_is_no_gpu_and_says_so(artifact: Path) -> None:
    assert set(open_run(artifact, threads=1).providers.values()) <= {"CPUExecutionProvider", "CUDAExecutionProvider"}
    assert open_run(artifact, threads=1, providers=["CPUExecutionProvider"]).providers == {"segment": "CPUExecutionProvider"}


def test_threads_and_idle_waiting_are_set(artifact: Path) -> None:
    options = open_run(artifact, threads=1).session("segment").get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_provider_that_this_build_lacks_is_refused(artifact: Path) -> None:
    with pytest.raises(SlipwayError, match=r"no NeuralThing.*it has: .*CPUExecutionProvider"):
        open_run(artifact, providers=["NeuralThing"])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": np.zeros((1, 64, 64, 3), np.uint8)}, "takes images, not image"),
        ({}, "takes images, not nothing"),
        ({"images": np.zeros((1, 64, 64, 3), np.float32)}, r"must be uint8 .* not float32 \[1, 64, 64, 3\]"),
        (
            {"images": np.zeros((1, 32, 64, 3), np.uint8)},
            r"must be uint8 \['batch', 64, 64, 3\], not uint8 \[1, 32, 64, 3\]",
        ),
        ({"images": np.zeros((64, 64, 3), np.uint8)}, r"not uint8 \[64, 64, 3\]"),
    ],
)
def test_wrong_arrays_are_named(artifact: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(SlipwayError, match=said):
        open_run(artifact, threads=1)("segment", **arrays)


def test_a_graph_that_does_not_exist_is_named(artifact: Path) -> None:
    with pytest.raises(SlipwayError, match="no graph 'decode'; it has: segment"):
        open_run(artifact, threads=1)("decode")


def _truncate(folder: Path) -> None:
    path = folder / "graphs" / "segment.onnx"
    path.write_bytes(path.read_bytes()[:500])


def _rewrite(folder: Path, **changes: object) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "artifact.json").unlink(), r"artifact\.json is missing"),
        (lambda folder: (folder / "artifact.json").write_text("{"), r"artifact\.json is not valid JSON"),
        (lambda folder: (folder / "artifact.json").write_text("[]"), "lacks workload, settings"),
        (lambda folder: (folder / "artifact.json").write_text('{"workload": "x"}'), "lacks settings, facts, graphs, recipe"),
        (
            lambda folder: (folder / "graphs" / "segment.onnx").unlink(),
            r"segment\.onnx is missing, though artifact\.json names it",
        ),
        (
            lambda folder: (folder / "graphs" / "segment.onnx").write_bytes(b""),
            r"segment\.onnx \(0 bytes\) cannot be opened",
        ),
        (_truncate, r"segment\.onnx \(500 bytes\) cannot be opened"),
        (lambda folder: _rewrite(folder, graphs={"segment": {"file": "../../x.onnx"}}), "outside its folder: refused"),
    ],
)
def test_a_broken_artifact_is_refused_when_it_is_opened(artifact: Path, harm, said: str) -> None:
    harm(artifact)
    with pytest.raises(SlipwayError, match=said):
        open_run(artifact, threads=1)


def test_serving_imports_neither_torch_nor_ultralytics(artifact: Path) -> None:
    code = (
        "from pathlib import Path; import numpy as np\n"
        "from serving.runtime import open_run\n"
        f"open_run(Path({str(artifact)!r}), threads=1)('segment', images=np.zeros((1, 64, 64, 3), np.uint8))"
    )
    assert not loaded(code) & {"torch", "ultralytics", "prefect", "dvc"}

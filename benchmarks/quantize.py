"""How much faster the int8 recipe is than fp32 ONNX: `python -m benchmarks.quantize` writes benchmarks/results/quantize.json.

Weights are random, as only time is measured; what int8 costs in accuracy is judged by the stage itself, on a trained model.
"""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from contracts.files import write_json
from contracts.settings import ExportSettings
from contracts.workload import Arrays
from tasks.export import write_onnx
from tasks.shipping.latency import interleaved
from tasks.shipping.quantizing import static_int8
from tasks.shipping.recording import Call

RESULTS = Path(__file__).parent / "results" / "quantize.json"
# model, image size in pixels, the bar: times as fast as fp32
CASES = (("digits-seg", 128, 1.2), ("yolov8n-seg.yaml", 640, 1.5))
NUM_SCENES = 32
SECONDS = 20.0


def main() -> None:
    """Measure every case and write the results."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(Path(scratch), *case) for case in CASES]
    write_json(RESULTS, {"command": "python -m benchmarks.quantize", "threads": 1, "cpu": cpu(), "rows": rows})
    for row in rows:
        print(
            f"{row['model']} at {row['image_size']} px: "
            + ", ".join(f"{key} {value}" for key, value in row["batches"].items())
        )


def measure(scratch: Path, model: str, size: int, bar: float) -> dict[str, Any]:
    """Median latency of fp32 and int8, taken in turn on one thread, at batch 1 (the bar) and 8."""
    from workloads.segmentation.graph import NAME, graphs
    from workloads.segmentation.objective import SegmentationObjective
    from workloads.segmentation.settings import SegmentationTrain

    settings = SegmentationTrain(model=model, image_size=size)
    graph = graphs(SegmentationObjective(network(model), settings), settings)[NAME]
    images = scenes(scratch / "scenes", size)
    fp32, int8 = scratch / "fp32.onnx", scratch / "int8.onnx"
    write_onnx(graph, fp32, ExportSettings())
    static_int8(fp32, int8, ({"images": image[None]} for image in images))
    runs = {"fp32": session_run(fp32), "int8": session_run(int8)}
    batches = {}
    for batch in (1, 8):
        laps = [[Call("", NAME, {"images": images[start : start + batch]}, {})] for start in range(0, 32 - batch, 4)]
        times = interleaved(runs, laps, seconds=SECONDS)
        batches[f"batch {batch}"] = {**times, "speedup": times["fp32"] / times["int8"]}
    sizes = {"fp32_bytes": fp32.stat().st_size, "int8_bytes": int8.stat().st_size}
    met = batches["batch 1"]["speedup"] >= bar
    return {"model": model, "image_size": size, "bar": bar, "met": met, "batches": batches, **sizes}


def network(model: str) -> Any:
    """A model of ours, or the stock one of Ultralytics, with random weights for ten classes."""
    from workloads.segmentation.yolo import make_model, prepare_ultralytics

    if not model.endswith(".yaml"):
        return make_model(model, [str(number) for number in range(10)], pretrained=False)
    prepare_ultralytics()
    from ultralytics.nn.tasks import SegmentationModel

    return SegmentationModel(model, nc=10, verbose=False)


def scenes(folder: Path, size: int) -> np.ndarray:
    """uint8 [NUM_SCENES, size, size, 3]: the embedded data set's train pictures, enlarged."""
    import cv2

    from workloads.segmentation import WORKLOAD

    folder.mkdir(exist_ok=True)
    WORKLOAD.sample(folder, 2 * NUM_SCENES)
    pictures: list[Any] = [cv2.imread(str(path)) for path in sorted(folder.glob("images/train/*"))[:NUM_SCENES]]
    return np.stack([cv2.resize(picture, (size, size)) for picture in pictures])


def session_run(path: Path) -> Any:
    """A run of one file on one thread, as serving opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(graph: str, /, **arrays: np.ndarray) -> Arrays:
        return dict(enumerate(session.run(None, arrays)))  # pyright: ignore[reportReturnType]

    return run


def cpu() -> str:
    """The processor, in the words of the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()

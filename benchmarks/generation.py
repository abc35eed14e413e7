"""Captions by ONNX Runtime against transformers' own `generate`: `python -m benchmarks.generation` writes results/generation.json.

It takes the model that `slipway run captioning` left in this project: the exported graphs, and the LLaVA folder saved beside the
weights. Both caption the same test pictures greedily on one thread, in turns; every token is compared. Times are the processor's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.conditions import load_now, write_result
from contracts.records import Records
from serving.runtime import Artifact, open_run
from workloads.captioning import pictures
from workloads.captioning.generating import describe
from workloads.captioning.seeing import sized

NUM_RECORDS, LONGEST, TURNS = 200, 32, 3
BATCHES, BAR = (1, 16), 2.0


def main() -> None:
    torch.set_num_threads(1)
    load, artifact = load_now(), Artifact.read(Path("data/export/captioning"))
    records = Records.open(Path("data/parse/captioning"), root=Path("data/download/captioning/raw")).split("test")
    images = [pictures.read(records.root, records[index].inputs) for index in range(min(NUM_RECORDS, len(records)))]
    ours, theirs = onnx(artifact), transformers(Path("data/train/captioning/model/transformers"))
    found = {f"batch {size}": compare(ours, theirs, images, size) for size in BATCHES}
    write_result(
        "generation",
        bar=f">= {BAR:g} x generate at batch 1 and 16, every token equal",
        met=all(one["ratio_median"] >= BAR and one["equal"] == one["captions"] for one in found.values()),
        load=load,
        **{name.replace(" ", "_"): one for name, one in found.items()},
    )


def compare(
    ours: Callable[[list[np.ndarray]], list[list[int]]],
    theirs: Callable[[list[np.ndarray]], list[list[int]]],
    images: list[np.ndarray],
    size: int,
) -> dict[str, Any]:
    """Ratio of the times and number of equal captions, pictures taken `size` at a time."""
    ratios, said = [], {}
    for _ in range(TURNS):
        seconds = {}
        for name, way in (("ours", ours), ("theirs", theirs)):
            began = time.process_time()
            said[name] = [tokens for start in range(0, len(images), size) for tokens in way(images[start : start + size])]
            seconds[name] = time.process_time() - began
        ratios.append(seconds["theirs"] / seconds["ours"])
    equal = sum(one == other for one, other in zip(said["ours"], said["theirs"], strict=True))
    rate = sum(map(len, said["ours"])) / seconds["ours"]  # pyright: ignore[reportPossiblyUnboundVariable]
    return {
        "ratio_median": median(ratios),
        "ratios": ratios,
        "captions": len(images),
        "equal": equal,
        "tokens_per_second": rate,
    }


def onnx(artifact: Artifact) -> Callable[[list[np.ndarray]], list[list[int]]]:
    """The exported graphs."""
    run, facts = open_run(artifact.folder, threads=1), artifact.facts

    def say(images: list[np.ndarray]) -> list[list[int]]:
        batch = np.stack([sized(image, facts["picture"]) for image in images])
        return describe(run, batch, facts["picture"], end=facts["tokenizer"]["end"], longest=LONGEST, beams=1)

    return say


def transformers(folder: Path) -> Callable[[list[np.ndarray]], list[list[int]]]:
    """The saved folder, opened and asked as its users would."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    end = model.generation_config.eos_token_id

    def say(images: list[np.ndarray]) -> list[list[int]]:
        inputs = processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
        rows = model.generate(**inputs, max_new_tokens=LONGEST)[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    return say


if __name__ == "__main__":
    main()

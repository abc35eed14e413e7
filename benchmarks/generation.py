"""Captions by ONNX Runtime against transformers' own `generate`: `python -m benchmarks.generation` writes results/generation.json.

First the model that `slipway run captioning` left in this project: the exported graphs, and the LLaVA folder saved beside the weights.
Then one of real size (SigLIP-base, SmolLM-135M, random weights, random pictures), of which a few pictures take minutes: what the
ratio is there, to which no bar is put. Both ways caption the same pictures greedily on one thread, in turns; every token of every turn
is compared. Times are the processor's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.captioning import FACTS, make
from benchmarks.conditions import load_now, write_result
from contracts.records import Records
from contracts.workload import Facts
from serving.runtime import Artifact, open_run
from tasks.export import write_artifact
from workloads.captioning import pictures
from workloads.captioning.generating import describe
from workloads.captioning.graph import graphs, merged
from workloads.captioning.llava import as_llava
from workloads.captioning.model import Captioner
from workloads.captioning.seeing import normalized, sized
from workloads.captioning.settings import CaptioningSettings

NUM_RECORDS, LONGEST, TURNS = 200, 32, 3
BATCHES, BAR = (1, 16), 2.0
# Pictures at real size, in batches of each size.
FEW = {1: 4, 16: 16}
REAL_PICTURE = {"size": 224, "resize": 224, "crop": False, "resample": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
REAL_FACTS = {**FACTS, "picture": REAL_PICTURE, "tokenizer": {"end": 0}}

# Tokens of a caption of each picture, uint8 RGB of any size.
Way = Callable[[list[np.ndarray]], list[list[int]]]


def main() -> None:
    torch.set_num_threads(1)
    load, artifact = load_now(), Artifact.read(Path("data/export/captioning"))
    records = Records.open(Path("data/parse/captioning"), root=Path("data/download/captioning/raw")).split("test")
    images = [pictures.read(records.root, records[index].inputs) for index in range(min(NUM_RECORDS, len(records)))]
    ours, theirs = onnx(artifact), transformers(Path("data/train/captioning/model/transformers"))
    found = {f"batch_{size}": compare(ours, theirs, images, size) for size in BATCHES}
    write_result(
        "generation",
        bar=f"batch_1 and batch_16 (the model of this project): >= {BAR:g} x generate, every token of every turn equal of at least"
        f" {NUM_RECORDS} pictures; real_size: no bar",
        met=all(map(is_met, found.values())),
        load=load,
        **found,
        real_size=at_real_size(make(None).captioner, REAL_FACTS),
    )


def is_met(found: Mapping[str, Any]) -> bool:
    """Whether a row is as fast as it must be, and equal to the last token of enough pictures."""
    return found["ratio_median"] >= BAR and found["equal"] == found["captions"] >= NUM_RECORDS


def compare(ours: Way, theirs: Way, images: list[np.ndarray], size: int) -> dict[str, Any]:
    """Ratio of the times, and the number of captions that were equal in every turn, pictures taken `size` at a time."""
    ratios, said, equal = [], {}, np.ones(len(images), bool)
    for _ in range(TURNS):
        seconds = {}
        for name, way in (("ours", ours), ("theirs", theirs)):
            began = time.process_time()
            said[name] = [tokens for start in range(0, len(images), size) for tokens in way(images[start : start + size])]
            seconds[name] = time.process_time() - began
        ratios.append(seconds["theirs"] / seconds["ours"])
        equal &= [one == other for one, other in zip(said["ours"], said["theirs"], strict=True)]
    rate = sum(map(len, said["ours"])) / seconds["ours"]  # pyright: ignore[reportPossiblyUnboundVariable]
    return {
        "ratio_median": median(ratios),
        "ratios": ratios,
        "captions": len(images),
        "equal": int(equal.sum()),
        "tokens_per_second": rate,
    }


def at_real_size(captioner: Captioner, facts: Facts) -> dict[str, Any]:
    """The same of a captioner that was never trained, and of pictures of noise."""
    rng, side = np.random.default_rng(0), facts["picture"]["size"]
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(max(FEW.values()))]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = onnx(exported(captioner, facts, Path(folder))), in_memory(as_llava(merged(captioner), facts), facts)
        return {f"batch_{size}": compare(ours, theirs, images[:num], size) for size, num in FEW.items()}


def exported(captioner: Captioner, facts: Facts, folder: Path) -> Artifact:
    """Its graphs, as the stage `export` writes them."""
    write_artifact(folder, graphs(captioner, facts), workload="captioning", settings=CaptioningSettings(), facts=facts)
    return Artifact.read(folder)


def onnx(artifact: Artifact) -> Way:
    """The exported graphs."""
    run, facts = open_run(artifact.folder, threads=1), artifact.facts

    def say(images: list[np.ndarray]) -> list[list[int]]:
        batch = np.stack([sized(image, facts["picture"]) for image in images])
        return describe(run, batch, facts["picture"], end=facts["tokenizer"]["end"], longest=LONGEST, beams=1)

    return say


def transformers(folder: Path) -> Way:
    """The saved folder, opened and asked as its users would."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    return lambda images: generated(model, **processor(images=images, text=["<image>"] * len(images), return_tensors="pt"))


def in_memory(model: Any, facts: Facts) -> Way:
    """A LLaVA without a processor: it gets its pictures as the graphs get theirs."""

    def say(images: list[np.ndarray]) -> list[list[int]]:
        pixels = torch.from_numpy(
            normalized(np.stack([sized(image, facts["picture"]) for image in images]), facts["picture"])
        )
        ids = torch.full((len(images), model.config.image_seq_length), model.config.image_token_id)
        return generated(model, pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))

    return say


def generated(model: Any, **inputs: torch.Tensor) -> list[list[int]]:
    """What `generate` says after what it is given, without what follows an end."""
    rows = model.generate(**inputs, max_new_tokens=LONGEST)[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


if __name__ == "__main__":
    main()

"""Captions from the graphs that ship: the tokens of transformers' own `generate`, and the same ones every time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.files import read_json, write_json
from contracts.workload import Graph
from engine.torch_runtime import torch_run
from serving.runtime import open_run
from tasks.shipping.quantizing import dynamic_int8
from tests.workloads.captioning.conftest import Tiny, write_bases, write_graphs
from workloads.captioning import pictures
from workloads.captioning.bases import describe as describe_bases
from workloads.captioning.generating import describe
from workloads.captioning.graph import graphs
from workloads.captioning.objective import build
from workloads.captioning.seeing import normalized, sized
from workloads.captioning.settings import CaptioningPrepare

LONGEST = 14


def loud(objective: Any) -> Any:
    """Weights large enough for captions to differ, adapters that are not zero, and an end that some captions reach."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, value in objective.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3)
            elif "projection" in name and value.ndim > 1:
                value.mul_(10)
    return objective.eval()


def images_of(tiny: Tiny, num: int) -> np.ndarray:
    records = tiny.records.split("train")
    return np.stack(
        [sized(pictures.read(records.root, records[index].inputs), tiny.facts["picture"]) for index in range(num)]
    )


def said_by_transformers(folder: Path, images: np.ndarray, **how: Any) -> list[list[int]]:
    """New tokens of each picture, by the published folder's own three lines."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=list(images), text=["<image>"] * len(images), return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, **how)[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in out]


@pytest.mark.parametrize("encoder", ["siglip", "clip"])
@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_the_published_folder_opens_with_transformers_and_says_the_same_tokens(
    tiny: Tiny, tmp_path: Path, encoder: str, projection: str
) -> None:
    from workloads.captioning.saving import save

    base = CaptioningPrepare.model_validate(write_bases(tmp_path, encoder=encoder))
    facts = describe_bases(base, tmp_path)
    objective = loud(build(tiny.with_train(projection=projection), facts, pretrained=True))
    run = torch_run(graphs(objective.captioner, facts), "cpu")
    ours = describe(run, images_of(tiny, 12), facts["picture"], end=facts["tokenizer"]["end"], longest=LONGEST, beams=1)
    save(objective.captioner, tmp_path / "model", facts, name="best")
    assert ours == said_by_transformers(tmp_path / "model" / "transformers", images_of(tiny, 12))
    assert len({tuple(tokens) for tokens in ours}) > 1


@pytest.mark.parametrize(("encoder", "decoder"), [("vit", "gpt2"), ("siglip", "qwen2")])
def test_the_graphs_of_any_encoder_and_language_model_say_what_generate_says(
    tiny: Tiny, tmp_path: Path, encoder: str, decoder: str
) -> None:
    facts = describe_bases(
        CaptioningPrepare.model_validate(write_bases(tmp_path, encoder=encoder, decoder=decoder, layers=1)), tmp_path
    )
    captioner = loud(build(tiny.settings, facts, pretrained=True)).captioner
    write_graphs(graphs(captioner, facts), tmp_path)
    images, end = images_of(tiny, 9), facts["tokenizer"]["end"]
    ours = describe(open_run(tmp_path, threads=1), images, facts["picture"], end=end, longest=LONGEST, beams=1)
    with torch.no_grad():
        prefix = captioner.prefix(captioner.features(torch.from_numpy(normalized(images, facts["picture"]))))
        how: dict[str, Any] = {"max_new_tokens": LONGEST, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        theirs = captioner.decoder.generate(inputs_embeds=prefix, **how).tolist()
    assert ours == [row[: row.index(end) + 1] if end in row else row for row in theirs]
    assert len({tuple(tokens) for tokens in ours}) > 1


def test_beam_search_finds_captions_at_least_as_likely_as_greedy_ones(tiny: Tiny) -> None:
    objective = loud(build(tiny.settings, tiny.facts, pretrained=True))
    run = torch_run(graphs(objective.captioner, tiny.facts), "cpu")
    end = tiny.facts["tokenizer"]["end"]
    images = images_of(tiny, 6)
    one, four = (describe(run, images, tiny.facts["picture"], end=end, longest=LONGEST, beams=beams) for beams in (1, 4))
    again = describe(run, images, tiny.facts["picture"], end=end, longest=LONGEST, beams=4)
    assert four == again
    better = [likelihood(objective, tiny, row, images) for row in (one, four)]
    assert sum(better[1]) >= sum(better[0])


def likelihood(objective: Any, tiny: Tiny, captions: list[list[int]], images: np.ndarray) -> list[float]:
    """The mean log-probability of a caption's tokens, by one forward of the model."""
    found = []
    for ids, image in zip(captions, images, strict=True):
        batch = {
            "ids": torch.tensor([ids]),
            "labels": torch.tensor([ids]),
            "pixels": torch.from_numpy(normalized(image[None], tiny.facts["picture"])),
        }
        with torch.no_grad():
            found.append(-float(objective(batch)["loss"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp32", "int8_dynamic"])
def test_the_onnx_files_say_the_tokens_of_torch_alone_and_together(
    tiny: Tiny, parts: Mapping[str, Graph], model: Path, tmp_path: Path, recipe: str
) -> None:
    shutil.copytree(model, tmp_path / recipe)
    if recipe == "int8_dynamic":
        write_json(tmp_path / recipe / "artifact.json", {**read_json(model / "artifact.json"), "recipe": recipe})
        for path in (tmp_path / recipe / "graphs").iterdir():
            dynamic_int8(path, path)
    files = open_run(tmp_path / recipe, threads=1)
    images, how = images_of(tiny, 9), {"end": tiny.facts["tokenizer"]["end"], "longest": LONGEST, "beams": 1}
    together = describe(files, images, tiny.facts["picture"], **how)
    assert [describe(files, images[row : row + 1], tiny.facts["picture"], **how)[0] for row in range(9)] == together
    assert recipe != "fp32" or describe(torch_run(parts, "cpu"), images, tiny.facts["picture"], **how) == together
    prefix = files("encoder", pixels=normalized(images, tiny.facts["picture"]))["prefix"]
    logits = files("prefill", prefix=prefix)["logits"]
    alone = [files("prefill", prefix=prefix[row : row + 1])["logits"][0] for row in range(9)]
    assert np.abs(logits - alone).max() < (1e-4 if recipe == "fp32" else 1e-12)

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
from workloads.captioning.graph import graphs, merged
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


def test_beam_search_says_what_generate_says_alone_and_together(tiny: Tiny) -> None:
    captioner = loud(build(tiny.settings, tiny.facts, pretrained=True)).captioner
    run, picture, images = torch_run(graphs(captioner, tiny.facts), "cpu"), tiny.facts["picture"], images_of(tiny, 9)
    end = said_at_most_places(describe(run, images, picture, end=-1, longest=LONGEST, beams=1))
    how: dict[str, Any] = {"end": end, "longest": LONGEST, "beams": 3}
    together = describe(run, images, picture, **how)
    assert together == [describe(run, image[None], picture, **how)[0] for image in images]
    with torch.no_grad():
        prefix = captioner.prefix(captioner.features(torch.from_numpy(normalized(images, picture))))
        decoder: Any = merged(captioner).decoder
        theirs = decoder.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64),
            max_new_tokens=LONGEST,
            num_beams=3,
            early_stopping=True,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
    assert together == [row[: row.index(end) + 1] if end in row else row for row in theirs.tolist()]
    assert len({len(tokens) for tokens in together}) > 1
    assert together != describe(run, images, picture, **{**how, "beams": 1})


def said_at_most_places(captions: list[list[int]]) -> int:
    """The token that comes first at most different places: as the end, it makes captions of most lengths."""
    places: dict[int, set[int]] = {}
    for caption in captions:
        for token in set(caption):
            places.setdefault(token, set()).add(caption.index(token))
    return max(places, key=lambda token: len(places[token]))


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

"""The published folder as transformers.js and optimum look at it: by ONNX Runtime alone, token for token what transformers says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from contracts.settings import ExportSettings
from engine.torch_runtime import torch_run
from tasks.export import opened, write_onnx
from tests.workloads.captioning.conftest import Tiny, write_bases
from tests.workloads.captioning.test_generating import LONGEST, images_of, loud, said_by_transformers
from workloads.captioning.bases import describe as describe_bases
from workloads.captioning.generating import describe
from workloads.captioning.graph import graphs
from workloads.captioning.layout import layout
from workloads.captioning.objective import build
from workloads.captioning.saving import save
from workloads.captioning.settings import CaptioningPrepare

PROMPTS = ("<image>", "<image> a small red seven", "<image> two", "<image> a green one left of")


@pytest.fixture(
    scope="module", params=[("siglip", 2), pytest.param(("clip", 1), marks=pytest.mark.slow)], ids=lambda value: value[0]
)
def published(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train` and `export` put into a published folder, with some of the pictures' captions by the workload's graphs."""
    encoder, layers = request.param
    folder = tmp_path_factory.mktemp("published")
    facts = describe_bases(CaptioningPrepare.model_validate(write_bases(folder, encoder=encoder, layers=layers)), folder)
    captioner = loud(build(tiny.settings, facts, pretrained=True)).captioner
    save(captioner, folder, facts, name="best")
    made = layout(captioner, facts)
    assert made
    for name, graph in made.graphs.items():
        write_onnx(graph, folder / f"{name}.onnx", ExportSettings())
    how: Any = {"end": facts["tokenizer"]["end"], "longest": LONGEST, "beams": 1}
    runs = (torch_run(graphs(captioner, facts), "cpu"), made.own(opened(folder, made)))
    said = [describe(run, images_of(tiny, 9), facts["picture"], **how) for run in runs]
    (folder / "said.json").write_text(json.dumps(said))
    return folder / "transformers"


def said_by_onnx(folder: Path, inputs: dict[str, np.ndarray]) -> list[list[int]]:
    """Greedy decoding by the convention: the merged decoder with an empty past first, embeddings of words and picture merged
    outside, positions that count what is no padding."""
    vision, embed, decoder = (
        onnxruntime.InferenceSession(str(folder / "onnx" / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )
    config, generation = (json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json"))
    text, end = config["text_config"], generation["eos_token_id"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embeddings: Any = embed.run(["inputs_embeds"], {"input_ids": ids})[0]
    seen: Any = vision.run(["image_features"], {"pixel_values": inputs["pixel_values"]})[0]
    embeddings[ids == config["image_token_index"]] = seen.reshape(-1, seen.shape[-1])
    empty = np.zeros((len(ids), text["num_key_value_heads"], 0, text["head_dim"]), np.float32)
    names = [f"{layer}.{what}" for layer in range(text["num_hidden_layers"]) for what in ("key", "value")]
    past: Any = {f"past_key_values.{name}": empty for name in names}
    said: list[list[int]] = [[] for _ in ids]
    for _ in range(LONGEST):
        positions = np.where(mask, mask.cumsum(1) - 1, 1)[:, -embeddings.shape[1] :]
        fed = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions, **past}
        logits, *present = (np.asarray(one) for one in decoder.run(["logits", *(f"present.{name}" for name in names)], fed))
        tokens = logits[:, -1].argmax(-1)
        for row, token in zip(said, tokens.tolist(), strict=True):
            row.extend([token] if end not in row else [])
        past = dict(zip(past, present, strict=True))
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        embeddings = embed.run(["inputs_embeds"], {"input_ids": tokens[:, None]})[0]
    return said


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_runtime_alone_says_what_generate_says_with_padding(published: Path, tiny: Tiny, batch: int) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(published)
    processor: Any = AutoProcessor.from_pretrained(published)
    captions = set()
    for start in range(0, 8, batch):
        images, text = list(images_of(tiny, 8)[start : start + batch]), list((PROMPTS * 2)[start : start + batch])
        inputs = processor(images=images, text=text, return_tensors="pt", padding=True)
        assert batch == 1 or not inputs["attention_mask"].all(1)[0], "the shortest prompt is padded on the left"
        out = model.generate(**inputs, max_new_tokens=LONGEST)[:, inputs["input_ids"].shape[1] :].tolist()
        end = model.generation_config.eos_token_id
        expected = [row[: row.index(end) + 1] if end in row else row for row in out]
        assert said_by_onnx(published, {name: value.numpy() for name, value in inputs.items()}) == expected
        captions |= {tuple(row) for row in expected}
    assert len(captions) > 2


def test_the_layout_answers_the_workloads_own_calls_with_the_same_tokens(published: Path, tiny: Tiny) -> None:
    own, laid_out = json.loads((published.parent / "said.json").read_text())
    assert own == laid_out == said_by_transformers(published, images_of(tiny, 9))


def test_the_folder_has_what_transformers_js_reads_and_no_path_of_this_machine(published: Path) -> None:
    picture, processor, config = (
        json.loads((published / f"{name}.json").read_text())
        for name in ("preprocessor_config", "processor_config", "config")
    )
    assert picture["processor_class"] == processor["processor_class"] == "LlavaProcessor"
    assert picture["image_processor_type"].endswith("ImageProcessor") and picture["image_mean"]
    assert config["transformers.js_config"] == {"dtype": "fp32"}
    # It counts a picture's tokens as (side / patch)^2 + num_additional_image_tokens.
    side, patch = config["vision_config"]["image_size"], processor["patch_size"]
    assert (side // patch) ** 2 + processor["num_additional_image_tokens"] == config["image_seq_length"]
    decoder = onnxruntime.InferenceSession(str(published / "onnx" / "decoder_model_merged.onnx"))
    axes = {one.name: one.shape for one in decoder.get_inputs()}
    assert axes["past_key_values.0.key"][0] == "batch_size" and axes["past_key_values.0.key"][2] == "past_sequence_length"
    for path in published.rglob("*"):
        assert path.is_dir() or str(published.parent).encode() not in path.read_bytes(), path


def test_a_pooled_prefix_has_no_layout(tiny: Tiny) -> None:
    settings = tiny.with_train(prefix_tokens=1)
    with torch.no_grad():
        assert layout(build(settings, tiny.facts, pretrained=True).captioner, tiny.facts) is None

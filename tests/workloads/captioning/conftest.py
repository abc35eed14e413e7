"""A captioner of the real classes, so small and untrained that it is there in a second, and scenes to caption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from contracts.files import replace_when_complete, write_json
from contracts.records import Record, Records, write_records
from contracts.settings import ExportSettings
from contracts.workload import Graph, load


@dataclass(frozen=True)
class Tiny:
    """Parsed scenes, what `parse` and `prepare` found, and settings that go with them."""

    records: Records
    facts: dict[str, Any]
    settings: Any
    folder: Path

    def with_train(self, **values: Any) -> Any:
        """The settings with other values of `train`."""
        return self.settings.model_copy(update={"train": self.settings.train.model_copy(update=values)})


def write_bases(
    folder: Path, *, encoder: str = "siglip", decoder: str = "llama", layers: int = 2, spread: float = 0.02
) -> dict[str, dict[str, str]]:
    """Random models of transformers' own classes, saved as they would lie on the hub; as `prepare` names them. `layers` are those of
    each, on which the time of an export depends; `spread` is the standard deviation of the language model's weights."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    from workloads.captioning.base.language import END, texts, train_tokenizer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    seeing: dict[str, Any] = {**sizes, "image_size": 48, "patch_size": 16}
    square = {"height": 48, "width": 48}
    if encoder == "clip":
        CLIPVisionModel(CLIPVisionConfig(**seeing)).save_pretrained(folder / "encoder")
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=square).save_pretrained(folder / "encoder")
    elif encoder == "vit":
        ViTModel(ViTConfig(**seeing)).save_pretrained(folder / "encoder")
        ViTImageProcessor(size=square).save_pretrained(folder / "encoder")
    else:
        SiglipVisionModel(SiglipVisionConfig(**seeing, vision_use_head=False)).save_pretrained(folder / "encoder")
        SiglipImageProcessor(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder / "encoder")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([" ".join(pair) for pair in texts(300, 0)]), eos_token=END, pad_token=END
    )
    end: Any = tokenizer.convert_tokens_to_ids(END)
    words = {"vocab_size": len(tokenizer), "tie_word_embeddings": True, "eos_token_id": end, "bos_token_id": end}
    heads = {} if decoder == "gpt2" else {"num_key_value_heads": 1}
    config = AutoConfig.for_model(decoder, **sizes, **heads, **words, initializer_range=spread)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    return {part: {"name": str(folder / part)} for part in ("encoder", "decoder")}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """60 scenes and random base models, prepared."""
    folder = tmp_path_factory.mktemp("captioning")
    workload = load("captioning")
    settings = workload.Settings.model_validate(
        {"prepare": write_bases(folder), "train": {"global_batch": 8, "longest": 24, "lora": {"dropout": 0.0}}}
    )
    (folder / "raw").mkdir()
    workload.sample(folder / "raw", 60)
    inputs, targets = workload.schema()
    found = (one for one in workload.parse(folder / "raw", settings, processes=1) if isinstance(one, Record))
    write_records(folder / "parse", found, inputs=inputs, targets=targets, shares=settings.parse.shares)
    records = Records.open(folder / "parse", root=folder / "raw")
    facts = workload.facts(folder / "raw", records, settings)
    prepared = folder / "prepare"
    prepared.mkdir()
    facts |= {**workload.prepare(records, settings, facts, prepared), "prepared": str(prepared)}
    return Tiny(records, facts, settings, folder)


@pytest.fixture(scope="session")
def objective(tiny: Tiny) -> Any:
    """The tiny captioner's objective, the same in every process, with weights large enough for captions to differ."""
    import torch

    from tests.workloads.captioning.test_generating import loud
    from workloads.captioning.objective import build

    torch.manual_seed(1)
    return loud(build(tiny.settings, tiny.facts, pretrained=True))


@pytest.fixture(scope="session")
def parts(tiny: Tiny, objective: Any) -> Mapping[str, Graph]:
    """The graphs of the tiny captioner."""
    from workloads.captioning.graph import graphs

    return graphs(objective.captioner, tiny.facts)


@pytest.fixture(scope="session")
def model(tiny: Tiny, parts: Mapping[str, Graph], shared: Path) -> Path:
    """The same as `export` leaves it; written once for all processes that share the tests."""
    folder = shared / "captioner"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with replace_when_complete(folder) as made:
                write_graphs(parts, made, settings=tiny.settings.model_dump(mode="json"), facts=tiny.facts)
    return folder


def write_graphs(parts: Mapping[str, Graph], folder: Path, **told: Any) -> None:
    """Graphs as `export` leaves them in `folder`; `told` may be the model's settings and facts."""
    from tasks.export import describe_graph, write_onnx

    for name, graph in parts.items():
        write_onnx(graph, folder / "graphs" / f"{name}.onnx", ExportSettings())
    described = {name: describe_graph(name, graph) for name, graph in parts.items()}
    about = {"workload": "captioning", "settings": {}, "facts": {}, "recipe": "fp32", "graphs": described}
    write_json(folder / "artifact.json", {**about, **told})

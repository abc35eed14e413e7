"""The presets of the original's sizes, built by the workload itself on torch's meta device: shapes and counts without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cli.use import presets_of
from contracts.settings import read_params, validate
from contracts.workload import ROOT, load
from tests.workloads.captioning.conftest import Tiny
from workloads.captioning.bases import describe
from workloads.captioning.objective import build, make_optimizer

GUIDE = ROOT / "docs" / "workloads" / "captioning.md"
# As their config.json on the hub has them; the towers of SigLIP-base are transformers' own defaults.
TOWERS: dict[str, dict[str, int]] = {
    "google/siglip-base-patch16-224": {},
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
# Width, width of the feed-forward layers, layers, heads, heads of keys and values.
DECODERS = {
    "HuggingFaceTB/SmolLM-135M": (576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM-360M": (960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolLM-1.7B": (2048, 8192, 24, 32, 32),
}
# Features of a picture, tokens and width of the prefix, parameters of LoRA, of the projection, and all in millions.
SIZES: dict[str, tuple[tuple[int, int], tuple[int, int], int, int, float]] = {
    "quick": ((196, 768), (196, 576), 1_843_200, 442_944, 229.7),
    "distilvit": ((196, 768), (196, 576), 1_843_200, 442_944, 229.7),
    "distilvit-360m": ((196, 768), (196, 960), 3_276_800, 738_240, 458.7),
    "distilvit-large": ((729, 1152), (81, 2048), 6_291_456, 6_557_696, 2152.5),
}


@pytest.fixture
def hub(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare` looks up on the hub, from here: commits, configurations, the pictures' processor, and a tokenizer of another size."""
    import transformers
    from huggingface_hub import HfApi, ResolvedRevision

    def config(name: str, **options: Any) -> Any:
        if name in TOWERS:
            return transformers.SiglipConfig(vision_config=TOWERS[name])
        width, inner, layers, heads, kept = DECODERS[name]
        return transformers.LlamaConfig(
            vocab_size=49152,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kept,
            tie_word_embeddings=True,
        )

    def processor(name: str, **options: Any) -> Any:
        side = TOWERS[name].get("image_size", 224)
        return transformers.SiglipImageProcessor(size={"height": side, "width": side})

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.folder / "decoder")
    commit = ResolvedRevision(resolved="0123456789" * 4, initial="main")
    monkeypatch.setattr(HfApi, "resolve_revision", lambda api, name, *, revision: commit)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", processor)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, **options: tokenizer)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_builds_the_originals_model_and_trains_what_the_original_trained(preset: str, tmp_path: Path) -> None:
    features, prefix, lora, projection, millions = SIZES[preset]
    section = read_params(presets_of("captioning")[preset])
    settings: Any = validate(load("captioning").Settings, section, where=preset)
    facts = describe(settings.prepare, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is made where both base models are named"
    with torch.device("meta"):
        objective = build(settings, facts, pretrained=False)
        captioner, side = objective.captioner, facts["picture"]["size"]
        seen = captioner.features(torch.empty(1, 3, side, side))
        assert tuple(seen.shape) == (1, *features) and tuple(captioner.prefix(seen).shape) == (1, *prefix)
    assert {value.device.type for value in objective.parameters()} == {"meta"}
    decoder: Any = captioner.decoder
    [config] = decoder.peft_config.values()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 16, 0.1)
    assert set(config.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    trained = {name: value.numel() for name, value in objective.named_parameters() if value.requires_grad}
    assert sum(num for name, num in trained.items() if "lora_" in name) == lora
    assert sum(trained.values()) == lora + projection
    assert round(sum(value.numel() for value in objective.parameters()) / 1e6, 1) == millions
    rates = {len(group["params"]): group["lr"] for group in make_optimizer(objective, settings.train).param_groups}
    assert set(rates.values()) == {3e-4, 1e-4} and rates[max(rates)] == 1e-4


def test_every_preset_that_names_base_models_is_built_here() -> None:
    named = {name for name, path in presets_of("captioning").items() if read_params(path).get("prepare", {}).get("encoder")}
    assert named == set(SIZES)


def test_quick_is_one_epoch_over_a_hundred_pictures() -> None:
    section = read_params(presets_of("captioning")["quick"])
    settings: Any = validate(load("captioning").Settings, section, where="quick")
    assert settings.train.epochs == 1
    assert settings.parse.most == 100 and [source.rows for source in settings.download.sources] == [100]


@pytest.mark.parametrize("preset", ["distilvit", "distilvit-360m", "distilvit-large"])
def test_the_lines_of_the_guide_that_choose_a_data_set_are_the_presets(preset: str) -> None:
    sources = read_params(presets_of("captioning")[preset])["download"]["sources"]
    lines = [f'- {{address: "{one["address"]}", into: {one["into"]}}}' for one in sources]
    guide, file = (path.read_text(encoding="utf-8") for path in (GUIDE, presets_of("captioning")[preset]))
    assert [one["into"] for one in sources] == ["flickr30k", "coco", "pexels"]
    assert all(line in guide and line in file for line in lines)
    for one in sources:
        alone = validate(load("captioning").Settings, {"download": {"sources": [one]}}, where=preset)
        assert [source.into for source in alone.download.sources] == [one["into"]]

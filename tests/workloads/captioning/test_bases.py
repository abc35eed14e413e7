"""The base models: small ones that are made on the spot learn the data's own captions, and that they are small is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from contracts.errors import SlipwayError
from contracts.workload import load
from tests.workloads.captioning.conftest import Tiny, write_bases
from workloads.captioning import base, scoring
from workloads.captioning.base import vision
from workloads.captioning.bases import describe, loaded_models
from workloads.captioning.objective import build
from workloads.captioning.phrases import COLOURS
from workloads.captioning.seeing import normalized, sized
from workloads.captioning.settings import BaseSteps, CaptioningPrepare, CaptioningSettings
from workloads.captioning.words import Words

SQUARE = {"height": 48, "width": 48}
OWN = ["Ein Hund läuft über die Straße", "a dog on the beach", "a dog in the snow", "two dogs on the beach"] * 4


def test_a_language_model_made_on_the_spot_learns_the_data_s_own_captions_and_can_say_anything(tmp_path: Path) -> None:
    settings = CaptioningPrepare.model_validate(
        {"encoder": write_bases(tmp_path)["encoder"], "base_steps": {"vision": 1, "language": 1}}
    )
    facts = describe(settings, tmp_path, captions=OWN)
    assert facts["made"] == ["decoder"]
    assert not list(tmp_path.glob("vision-*")), "an encoder is named, so none is made"
    words = Words(facts["tokenizer"])
    assert len(words.ids("a dog on the beach", longest=64)) == 6, "a word, or its end, is a token"
    assert len(words.ids("a small green four", longest=64)) > 10, "no caption has such words"
    for text in ("日本語 ⛵", "naïve"):
        assert words.text(words.ids(text, longest=64)) == text
    [made] = tmp_path.glob("language-*")
    assert json.loads((made / "config.json").read_text())["vocab_size"] < 400
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert describe(settings, tmp_path, captions=OWN) == facts
    assert (made / "model.safetensors").stat().st_mtime_ns == before, "the same captions cost nothing again"
    names = [base._key(base.CODE["language"], 1, base._digest(captions)) for captions in (OWN, [*OWN, "a cat"])]
    assert made.name == f"language-{names[0]}" and names[0] != names[1], "other captions make another"

    loss = json.loads((made / "reached.json").read_text())["loss"]
    assert facts["reached"] == {"decoder": {"loss": loss}}, "an encoder that is named has reached nothing here"
    assert 4 < loss < 7, "one step: hardly better than a guess among 300 tokens"
    notes = scoring.score([], CaptioningSettings(), facts).notes
    wanted = f"reached by themselves: the language model ended at a training loss of {loss:.3f} a token of a caption."
    assert [note.endswith(wanted) for note in notes].count(True) == 1


def test_an_encoder_made_on_the_spot_learns_to_see_unseen_handwriting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its colours, which are learnt first: by guessing, one in six is right."""
    monkeypatch.setattr(vision, "WARMUP", 10)  # of as few steps as there are here
    threads = torch.get_num_threads()
    base.train("vision", tmp_path / "made", 16)
    torch.set_num_threads(threads)
    assert json.loads((tmp_path / "made" / base.REACHED).read_text())["colour"] > 2 / len(COLOURS)


def test_the_captions_are_those_of_train_all_of_them_or_an_even_choice(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    train = tiny.records.split("train")
    every = [caption for record in train for caption in record.targets["captions"]]
    assert base.captions_of(train) == every
    monkeypatch.setattr(base, "MOST_PICTURES", 2)
    assert base.captions_of(train) == [*train[0].targets["captions"], *train[len(train) - 1].targets["captions"]]


@pytest.mark.parametrize("encoder", ["clip", "vit"])
def test_other_encoders_go_through_prepare_and_training_alike(tiny: Tiny, tmp_path: Path, encoder: str) -> None:
    prepare = CaptioningPrepare.model_validate(write_bases(tmp_path, encoder=encoder))
    settings, workload = tiny.settings.model_copy(update={"prepare": prepare}), load("captioning")
    facts = {**tiny.facts, **workload.prepare(tiny.records, settings, tiny.facts, tmp_path), "prepared": str(tmp_path)}
    assert np.shape(facts["features"]["mean"]) == (32,)
    objective = workload.build(settings, facts, pretrained=True)
    losses = []
    for features in (True, False):
        how = settings.model_copy(update={"prepare": prepare.model_copy(update={"features": features})})
        dataset = workload.dataset(tiny.records, how, facts, training=True)
        batch = dataset.collate([dataset.item(index, None, draw=0, progress=0) for index in range(4)])
        assert ("features" in batch) is features
        losses.append(objective.eval()(batch)["loss"])
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=2e-3)
    losses[0].backward()
    gradients = [value.grad for value in objective.parameters() if value.requires_grad]
    assert gradients and all(one is not None for one in gradients)


def write_whole(folder: Path, kind: str) -> Any:
    """A random model of which captioning takes a part, saved over the encoder in `folder`, as the hub has them; gives that part."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    seeing = {**sizes, "image_size": 48, "patch_size": 16}
    if kind == "vit":
        whole: Any = transformers.ViTForImageClassification(transformers.ViTConfig(**seeing))
    else:
        config, model = (getattr(transformers, f"{kind}{name}") for name in ("Config", "Model"))
        whole = model(config(vision_config=seeing, text_config={**sizes, "vocab_size": 40}))
    whole.save_pretrained(folder / "encoder")
    return (whole.vit if kind == "vit" else whole.vision_model).eval()


@pytest.mark.parametrize(("encoder", "kind"), [("siglip", "Siglip"), ("clip", "CLIP"), ("vit", "vit")])
def test_the_encoder_of_a_model_that_does_more_sees_what_it_sees_in_there(tmp_path: Path, encoder: str, kind: str) -> None:
    """As the presets name them: SiglipModel and CLIPModel with their second towers, ViT with a classifier and without its pooler."""
    bases = write_bases(tmp_path, encoder=encoder)
    tower = write_whole(tmp_path, kind)
    facts = describe(CaptioningPrepare.model_validate(bases), tmp_path)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        ours, theirs = (
            model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
            for model in (loaded_models(facts)[0].eval(), tower)
        )
    assert torch.equal(ours, theirs) and ours.std() > 0.01


@pytest.mark.parametrize(
    ("part", "dropped", "said"),
    [
        ("encoder", "layers.1.mlp.fc1.weight", "without .*layers.1.mlp.fc1.weight of a SiglipVisionModel"),
        ("encoder", "layers.1.", "without .*layers.1.* and 13 more of a SiglipVisionModel"),
        ("decoder", "model.norm.weight", "without model.norm.weight of a LlamaForCausalLM"),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_named_and_not_drawn_at_random(
    tmp_path: Path, part: str, dropped: str, said: str
) -> None:
    from safetensors.torch import load_file, save_file

    bases = write_bases(tmp_path)
    weights = tmp_path / part / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(weights).items() if dropped not in name},
        weights,
        metadata={"format": "pt"},
    )
    facts = describe(CaptioningPrepare.model_validate(bases), tmp_path)
    with pytest.raises(SlipwayError, match=rf"the base model .*{part} .* cannot be opened: its weights are .*{said}"):
        loaded_models(facts)


def described_picture(folder: Path, **how: Any) -> tuple[dict[str, Any], Any]:
    """What `prepare` knows of the processor of a SigLIP or, where it crops, of a CLIP, and the processor."""
    from transformers import AutoImageProcessor, CLIPImageProcessor, SiglipImageProcessor

    crops = "crop_size" in how or "do_center_crop" in how
    bases = write_bases(folder, encoder="clip" if crops else "siglip")
    (CLIPImageProcessor if crops else SiglipImageProcessor)(**how).save_pretrained(folder / "encoder")
    picture = describe(CaptioningPrepare.model_validate(bases), folder)["picture"]
    return picture, AutoImageProcessor.from_pretrained(folder / "encoder")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=str,
)
def test_pixels_are_the_numbers_that_the_encoder_s_own_processor_makes_of_them(tmp_path: Path, how: dict[str, Any]) -> None:
    picture, processor = described_picture(tmp_path, size=SQUARE, **how)
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    theirs = processor(images=image, return_tensors="np")["pixel_values"]
    assert normalized(sized(image, picture)[None], picture) == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"do_resize": False}, r"leaves pictures as large as they are \(do_resize is false\)"),
        ({"size": {"height": 48, "width": 64}}, "makes pictures 64 pixels wide and 48 high"),
        ({"size": {"shortest_edge": 48}}, r"scales pictures to {'shortest_edge': 48} and cuts nothing"),
        (
            {"size": {"shortest_edge": 48}, "do_center_crop": False},
            r"scales pictures to {'shortest_edge': 48} and cuts nothing",
        ),
        (
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 40}},
            "makes pictures 40 pixels wide and 48 high",
        ),
        ({"size": SQUARE, "crop_size": SQUARE}, "cuts the middle from a picture stretched to"),
        ({"size": SQUARE, "do_pad": True}, "pads pictures"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_processor_that_does_what_captioning_does_not_is_refused_in_words(
    tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(SlipwayError, match=rf"prepare.encoder .*encoder: its processor {said}.*; captioning knows"):
        described_picture(tmp_path, **how)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_more_layers_than_there_are_cannot_be_unfrozen(tiny: Tiny, part: str) -> None:
    with pytest.raises(SlipwayError, match=rf"train.unfreeze_{part} = 3: the (siglip_vision_model|llama) has 2 layers"):
        build(tiny.with_train(**{f"unfreeze_{part}": 3}), tiny.facts, pretrained=False)
    build(tiny.with_train(**{f"unfreeze_{part}": 2}), tiny.facts, pretrained=False)


@pytest.mark.parametrize("size", [(97, 48), (64, 120), (33, 30)])
def test_a_picture_is_scaled_and_cut_as_the_encoder_s_own_processor_does(tmp_path: Path, size: tuple[int, int]) -> None:
    """The shorter side becomes 64 pixels, and 48 of them are seen."""
    from transformers import AutoImageProcessor, CLIPImageProcessor

    bases = write_bases(tmp_path, encoder="clip")
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}).save_pretrained(
        tmp_path / "encoder"
    )
    how = describe(CaptioningPrepare.model_validate(bases), tmp_path)["picture"]
    assert (how["size"], how["resize"], how["crop"]) == (48, 64, True)
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    ours = normalized(sized(np.asarray(image), how)[None], how)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "encoder")(images=image, return_tensors="np")["pixel_values"]
    assert np.abs(ours - theirs).max() * 0.27 * 255 < 3, "two ways to round, and no other part of the picture"


def test_an_encoder_that_sees_any_shape_is_refused_in_words(tmp_path: Path) -> None:
    from transformers import Siglip2VisionConfig

    bases = write_bases(tmp_path)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    Siglip2VisionConfig(**sizes).save_pretrained(tmp_path / "encoder")
    with pytest.raises(SlipwayError, match=r"prepare.encoder .* is a SigLIP 2 of the kind NaFlex.*siglip2-base-patch16-224"):
        describe(CaptioningPrepare.model_validate(bases), tmp_path)


@pytest.mark.parametrize("embedded", [True, False])
def test_base_models_that_are_not_pretrained_are_told_where_the_data_are_one_s_own(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], embedded: bool
) -> None:
    made: list[Any] = []

    def make(folder: Path, steps: BaseSteps, *, kinds: Any, captions: Any) -> dict[str, Path]:
        made.append(captions)
        bases = write_bases(folder)
        for part, figures in reached.items():
            (Path(bases[part]["name"]) / base.REACHED).write_text(json.dumps(figures))
        return {"vision": Path(bases["encoder"]["name"]), "language": Path(bases["decoder"]["name"])}

    reached = {"encoder": {"digit": 0.9, "colour": 1.0}, "decoder": {"loss": 0.25}}
    monkeypatch.setattr(base, "make", make)
    facts = {**tiny.facts, "embedded": embedded}
    found = load("captioning").prepare(tiny.records, CaptioningSettings(), facts, tmp_path)
    assert found["reached"] == reached
    assert made == [None if embedded else base.captions_of(tiny.records.split("train"))]
    notes = " ".join(scoring.score([], CaptioningSettings(), found).notes)
    said = capsys.readouterr().err
    for text in (notes, said):
        assert ("prepare.encoder and captioning.prepare.decoder name real ones; `slipway use" in text) is not embedded
        assert ("the encoder has learnt from drawn digits" in text) is not embedded

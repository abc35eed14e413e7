"""CLIPScore by a tiny CLIP of the real classes, against the formulas of the paper calculated by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import SlipwayError
from contracts.workload import load
from engine.torch_runtime import torch_run
from tests.workloads.captioning.conftest import Tiny
from workloads.captioning.clip_score import Judge, harmonic_mean, judge
from workloads.captioning.graph import graphs
from workloads.captioning.objective import build
from workloads.captioning.scoring import WITHOUT_CLIP
from workloads.captioning.settings import Base

CAPTIONS = ["a small red seven", "two blue nines beside each other", ""]
REFERENCES = [["a red seven", "one small seven in red"], ["blue nines"], []]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP in a folder, as it would lie on the hub."""
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    from workloads.captioning.base.language import END, texts, train_tokenizer
    from workloads.captioning.writing import write_model

    folder = tmp_path_factory.mktemp("clip")
    words = train_tokenizer([" ".join(pair) for pair in texts(200, 0)])
    end: Any = words.token_to_id(END)
    # As CLIP's own: a text ends with the token whose place speaks for all of it.
    words.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=END)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(3)
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": end},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():  # as it comes, every cosine is below 0
        model.visual_projection.weight.neg_()
    write_model(model, folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cosine(folder: Path, picture: np.ndarray, caption: str, reference: str) -> tuple[float, float]:
    """Of picture and caption, and of caption and reference, by the whole model's own output."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=picture, return_tensors="pt")
    found = []
    for text in (caption, reference):
        tokens = tokenizer(f"A photo depicts {text}", truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels))
    (text, other), picture_is = (one.text_embeds[0] for one in found), found[0].image_embeds[0]
    return float(picture_is @ text), float(text @ other)


def test_the_scores_are_those_of_the_paper(clip: Path) -> None:
    rng = np.random.default_rng(0)
    grounds = ((255, 0, 0), (0, 0, 255), (0, 255, 0))
    shapes = [np.full((40 + index, 64, 3), ground, np.uint8) for index, ground in enumerate(grounds)]
    pictures = [(f"sha{index}", shape ^ rng.integers(0, 64, shape.shape, np.uint8)) for index, shape in enumerate(shapes)]
    asked = Judge(Base(name=str(clip)))
    scores = asked.scores(pictures, CAPTIONS, REFERENCES)
    signs = set()
    for (_, picture), caption, references, found in zip(pictures, CAPTIONS, REFERENCES, scores, strict=True):
        cosines = [cosine(clip, picture, caption, one) for one in references or [""]]
        signs.add(cosines[0][0] > 0)
        likeness = 2.5 * max(cosines[0][0], 0)
        nearest = max([max(one for _, one in cosines), 0.0]) if references else 0.0
        expected = 2 * likeness * nearest / (likeness + nearest) if likeness and nearest else 0.0
        assert found == pytest.approx({"clip_score": likeness, "ref_clip_score": expected}, abs=1e-5)
    assert scores == asked.scores(pictures, CAPTIONS, REFERENCES), "remembered pictures score the same"
    assert harmonic_mean(0.0, 1.0) == 0.0 and harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert True in signs, "nothing but clipped zeros would show nothing"


def test_the_scores_are_metrics_where_a_model_is_set_and_said_to_be_off_where_none_is(tiny: Tiny, clip: Path) -> None:
    workload = load("captioning")
    objective: Any = build(tiny.settings, tiny.facts, pretrained=True)
    run, some = torch_run(graphs(objective.eval().captioner, tiny.facts), "cpu"), tiny.records.take([0, 1, 2])

    def scored(clip_model: Base | None) -> Any:
        evaluate = tiny.settings.evaluate.model_copy(update={"clip": clip_model})
        settings = tiny.settings.model_copy(update={"evaluate": evaluate})
        measures = list(workload.measure(run, some, settings, tiny.facts))
        return measures, workload.score(measures, settings, tiny.facts)

    measures, scores = scored(Base(name=str(clip)))
    assert scores.metrics["clip_score"] == pytest.approx(np.mean([each["clip_score"] for each in measures]))
    assert {"clip_score", "ref_clip_score"} <= set(scores.metrics) & set(scores.meanings) and not scores.notes
    measures, scores = scored(None)
    assert not any("clip" in name for name in [*scores.metrics, *measures[0]]) and scores.notes == [WITHOUT_CLIP]


def test_a_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match="the base model .*nowhere.* cannot be opened"):
        judge(str(tmp_path / "nowhere"), None)

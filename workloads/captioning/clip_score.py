"""How well captions fit their pictures by CLIP's own judgement, without references and with them (Hessel et al. 2021, arXiv
2104.08718). Off unless a CLIP model is set; needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from workloads.captioning.bases import opened, opened_whole
from workloads.captioning.settings import Base

PROMPT = "A photo depicts "
WEIGHT = 2.5


@cache
def judge(name: str, revision: str | None) -> Judge:
    """The CLIP model of that name, opened once in a process."""
    return Judge(Base(name=name, revision=revision))


class Judge:
    """A CLIP model of transformers with its own processor and tokenizer. It remembers the pictures it has seen."""

    def __init__(self, base: Base) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = opened_whole(CLIPModel, base).eval().to(self._device)
        self._processor, self._tokenizer = (
            opened(kind.from_pretrained, base) for kind in (AutoImageProcessor, AutoTokenizer)
        )
        self._pictures: dict[str, np.ndarray] = {}

    def scores(
        self, pictures: Sequence[tuple[str, np.ndarray]], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[dict[str, float]]:
        """`clip_score` and `ref_clip_score` of each caption, with its picture (SHA-256, and uint8 [height, width, 3] RGB) and
        its references; without a reference the second is 0."""
        seen = self._seen(pictures)
        said = self._read(captions)
        known = self._read([one for each in references for one in each])
        rows, start = [], 0
        for picture, caption, each in zip(seen, said, references, strict=True):
            likeness = WEIGHT * max(float(picture @ caption), 0.0)
            nearest = max([float(one @ caption) for one in known[start : start + len(each)]], default=0.0)
            start += len(each)
            rows.append({"clip_score": likeness, "ref_clip_score": harmonic_mean(likeness, max(nearest, 0.0))})
        return rows

    def _seen(self, pictures: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        new = {key: picture for key, picture in pictures if key not in self._pictures}
        if new:
            pixels = self._processor(images=list(new.values()), return_tensors="pt", input_data_format="channels_last")
            found = self._embedded(self._model.vision_model, self._model.visual_projection, **pixels)
            self._pictures.update(zip(new, found, strict=True))
        return [self._pictures[key] for key, _ in pictures]

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, width], of length 1."""
        if not texts:
            return np.zeros((0, 0), np.float32)
        longest = self._model.config.text_config.max_position_embeddings
        prompts = [PROMPT + text for text in texts]
        tokens = self._tokenizer(prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return self._embedded(self._model.text_model, self._model.text_projection, **inputs)

    def _embedded(self, tower: Any, projection: Any, **inputs: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pooled = tower(**{name: value.to(self._device) for name, value in inputs.items()}).pooler_output
            return torch.nn.functional.normalize(projection(pooled), dim=-1).cpu().numpy()


def harmonic_mean(one: float, other: float) -> float:
    """0 where one of them is."""
    return 2 * one * other / (one + other) if one and other else 0.0

"""Captions for people and for scores: of records, for a gallery, and for a user's own pictures. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.raw import RawInput
from contracts.records import Record, Records
from contracts.workload import Facts, Measure, Run, Told
from workloads.captioning import pictures
from workloads.captioning.drawing import captioned, enlarged
from workloads.captioning.generating import describe
from workloads.captioning.scoring import quality_of
from workloads.captioning.seeing import sized
from workloads.captioning.words import Words

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningSettings


@dataclass(frozen=True)
class CaptioningPrediction:
    """The caption of one picture. `name` is the raw input's; `error` says why there is none."""

    name: str
    caption: str
    picture: np.ndarray
    error: str | None = None

    def json(self) -> dict[str, Any]:
        """Plain values: the picture's name and its caption."""
        return {"image": self.name, "error": self.error} if self.error else {"image": self.name, "caption": self.caption}

    def draw(self) -> np.ndarray:
        """The picture with its caption below, uint8 [height, width, 3], BGR.

        Raises:
            SlipwayError: when there is no result.
        """
        if self.error:
            raise SlipwayError(self.error)
        return captioned(self.picture, [self.caption])


@dataclass(frozen=True)
class Said:
    """What was said of a picture: its tokens and the caption that they spell."""

    tokens: Sequence[int]
    caption: str


def say(run: Run, images: Sequence[np.ndarray], settings: CaptioningSettings, facts: Facts, words: Words) -> list[Said]:
    """Captions for pictures uint8 [height, width, 3] RGB of any size, made together."""
    how = settings.evaluate
    batch = np.stack([sized(image, facts["picture"]) for image in images])
    spoken = describe(run, batch, facts["picture"], end=words.end, longest=how.longest, beams=how.beams)
    return [Said(tokens, words.text(tokens)) for tokens in spoken]


def measure(run: Run, records: Records, settings: CaptioningSettings, facts: Facts) -> Iterator[Measure]:
    """For each record what was said, what others said, and whether the model came to an end."""
    words = Words(facts["tokenizer"])
    for some in batches(iter(records), settings.evaluate.batch_size):
        images = [pictures.read(records.root, record.inputs) for record in some]
        yield from measured(some, images, say(run, images, settings, facts, words), settings, words)


def measured(
    records: Sequence[Record],
    images: Sequence[np.ndarray],
    spoken: Sequence[Said],
    settings: CaptioningSettings,
    words: Words,
) -> Iterator[Measure]:
    """The measures of some records, of which `spoken` was said. Only CLIP looks at the images."""
    liked = likenesses(records, images, [said.caption for said in spoken], settings)
    for record, said, likeness in zip(records, spoken, liked, strict=True):
        references = record.targets["captions"]
        yield {
            **likeness,
            "caption": said.caption,
            "references": references,
            "scene": record.targets["scene"],
            "tokens": len(said.tokens),
            "ended": said.tokens[-1] == words.end,
            "quality": quality_of(said.caption, references),
        }


def likenesses(
    records: Sequence[Record], images: Sequence[np.ndarray], captions: Sequence[str], settings: CaptioningSettings
) -> list[dict[str, float]]:
    """CLIP's judgement of each caption; nothing where no CLIP model is set."""
    if settings.evaluate.clip is None:
        return [{} for _ in records]
    from workloads.captioning.clip_score import judge

    pictures = [(record.inputs["sha256"], image) for record, image in zip(records, images, strict=True)]
    references = [record.targets["captions"] for record in records]
    return judge(settings.evaluate.clip.name, settings.evaluate.clip.revision).scores(pictures, captions, references)


def gallery(run: Run, records: Records, settings: CaptioningSettings, facts: Facts) -> Iterator[tuple[str, np.ndarray]]:
    """For each record, in order: a caption, and the picture with what was said and what it says in the data set."""
    words = Words(facts["tokenizer"])
    for some in batches(iter(records), settings.evaluate.batch_size):
        images = [pictures.read(records.root, record.inputs) for record in some]
        for record, image, said in zip(some, images, say(run, images, settings, facts, words), strict=True):
            reference = record.targets["captions"][0]
            yield f"{record.key}: {said.caption}", captioned(image, [f"says: {said.caption}", f"data: {reference}"])


def tell(run: Run, records: Records, settings: CaptioningSettings, facts: Facts) -> Iterator[Told]:
    """Of each record, in order: the picture, its captions in the data set, and what was said."""
    words = Words(facts["tokenizer"])
    for some in batches(iter(records), settings.evaluate.batch_size):
        images = [pictures.read(records.root, record.inputs) for record in some]
        for record, image, said in zip(some, images, say(run, images, settings, facts, words), strict=True):
            yield Told(enlarged(image), record.targets["captions"], said.caption)


def predict(
    run: Run, inputs: Iterable[RawInput], settings: CaptioningSettings, facts: Facts
) -> Iterator[CaptioningPrediction]:
    """Captions for pictures, in order. What is no picture comes as a prediction with an `error`; the others go on."""
    words = Words(facts["tokenizer"])
    for some in batches(iter(inputs), settings.evaluate.batch_size):
        yield from _predicted(run, some, settings, facts, words)


def _predicted(
    run: Run, inputs: Sequence[RawInput], settings: CaptioningSettings, facts: Facts, words: Words
) -> Iterator[CaptioningPrediction]:
    seen = [_seen(raw) for raw in inputs]
    images = [one for one in seen if isinstance(one, np.ndarray)]
    spoken = iter(say(run, images, settings, facts, words) if images else [])
    for raw, one in zip(inputs, seen, strict=True):
        if isinstance(one, str):
            yield CaptioningPrediction(raw.name, "", np.zeros((0, 0, 3), np.uint8), one)
        else:
            yield CaptioningPrediction(raw.name, next(spoken).caption, one)


def _seen(raw: RawInput) -> np.ndarray | str:
    """The picture, or why it cannot be read."""
    try:
        return pictures.decoded(raw.read(), raw.place)
    except SlipwayError as error:
        return str(error)


def batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(items, size)):
        yield some

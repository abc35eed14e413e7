"""The section `captioning` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.settings import (
    EvaluateSettings,
    ParseSettings,
    PrepareSettings,
    Section,
    Settings,
    Share,
    TrainSettings,
)


class CaptioningParse(ParseSettings):
    """`format` auto looks at the files. `labels` is a path below the download, where looking is not enough.

    `image_column` and `caption_column` name the columns of tables and of Hugging Face data sets; None takes the usual names.
    `keep` are values that a column must have ({is_document: 1}), `caption` stands for every caption where the data set has none.
    `most` takes so many pictures and no more, spread over the data sets, their splits and their shards; of those that it takes
    some may still be refused. `shortest` and `longest` are a caption's length in characters, a run of spaces
    counted as one. With `format` auto every top folder of the download may be a data set of its own format.
    """

    format: Literal["auto", "hub", "metadata", "table", "karpathy", "flickr", "coco"] = "auto"
    labels: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    keep: Mapping[str, str | int | bool] = {}
    caption: str | None = None
    most: Annotated[int, Field(ge=1)] | None = None
    shortest: Annotated[int, Field(ge=1)] = 1
    longest: Annotated[int, Field(ge=1)] = 2000


class Base(Section):
    """A model that is there before training: an id on the Hugging Face Hub and a revision, or a folder."""

    name: str
    revision: str | None = None


class BaseSteps(Section):
    """How long the embedded base models are trained, in optimiser steps."""

    vision: Annotated[int, Field(ge=1)] = 3000
    language: Annotated[int, Field(ge=1)] = 1000


class CaptioningPrepare(PrepareSettings):
    """The base models, which decide what frozen features are. None: small ones, made on the spot: the encoder from drawn digits, the
    language model from the captions of the embedded data set or, where the data are your own, from those.

    `encoder` is any SigLIP, CLIP or ViT model of transformers, `decoder` any decoder-only language model. `features` keeps
    what the frozen encoder says of each picture; without it the encoder runs in every step.
    """

    encoder: Base | None = None
    decoder: Base | None = None
    base_steps: BaseSteps = BaseSteps()
    features: bool = True
    batch_size: Annotated[int, Field(ge=1)] = 32


class Lora(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685). `targets` None: the attention's projections of the architecture."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Share = 0.1
    targets: tuple[str, ...] | None = None


class CaptioningTrain(TrainSettings):
    """`learning_rate` is the projection's; `lora_rate` and `unfrozen_rate` those of the adapters and of unfrozen layers.

    `prefix_tokens` pools the encoder's tokens to so many (a square number); None keeps them all. `unfreeze_encoder` and
    `unfreeze_decoder` train so many of the last layers too. `contrast` is the weight of a CLIP loss between the pooled picture and
    its caption, told from those of the others of its ghost batch, so it needs a `ghost_batch` of 2 or more. `augment` varies the pictures, and then no features are kept.
    """

    projection: Literal["linear", "mlp"] = "mlp"
    prefix_tokens: Annotated[int, Field(ge=1)] | None = None
    longest: Annotated[int, Field(ge=2)] = 64
    lora: Lora | None = Lora()
    lora_rate: Annotated[float, Field(gt=0)] = 1e-4
    unfreeze_encoder: Annotated[int, Field(ge=0)] = 0
    unfreeze_decoder: Annotated[int, Field(ge=0)] = 0
    unfrozen_rate: Annotated[float, Field(gt=0)] = 1e-5
    contrast: Annotated[float, Field(ge=0)] = 0
    augment: bool = False

    @model_validator(mode="after")
    def _others_to_tell_from(self) -> Self:
        if self.contrast and self.ghost_batch < 2:
            raise ValueError(
                f"contrast {self.contrast:g} tells a picture's caption from those of the others of its ghost batch, and in a ghost_batch"
                f" of {self.ghost_batch} there is no other: set ghost_batch too (ghost_batch: 16)"
            )
        return self


class CaptioningEvaluate(EvaluateSettings):
    """How captions are made: `beams` 1 is greedy, `longest` in tokens, `batch_size` in pictures at once.

    `clip` names a CLIP model of transformers, on the hub or in a folder, that scores how captions fit pictures; None: nobody.
    """

    clip: Base | None = None
    beams: Annotated[int, Field(ge=1)] = 1
    longest: Annotated[int, Field(ge=1)] = 32
    batch_size: Annotated[int, Field(ge=1)] = 16


class CaptioningSettings(Settings):
    """Everything a user sets for captioning."""

    parse: CaptioningParse = CaptioningParse()
    prepare: CaptioningPrepare = CaptioningPrepare()
    train: CaptioningTrain = CaptioningTrain()
    evaluate: CaptioningEvaluate = CaptioningEvaluate()

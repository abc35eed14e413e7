"""The section `segmentation` of params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from contracts.settings import EvaluateSettings, ParseSettings, Section, Settings, Share, TrainSettings


class SegmentationParse(ParseSettings):
    """`format` auto looks at the files. `labels` and `images` are paths below the download, where looking is not enough.

    `classes` None takes the names that the labels hold; set, other names are rejected. `aliases` renames spellings. A line
    is buffered to a polygon `line_width` pixels wide. `group_pattern` is a regular expression on the image's path whose
    first group names what must not be split (a circuit, a flight); None keeps every image on its own.
    """

    format: Literal["auto", "labelbox", "coco", "yolo", "labelme", "voc"] = "auto"
    labels: str | None = None
    images: str | None = None
    classes: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = {}
    line_width: Annotated[float, Field(gt=0)] = 4.0
    group_pattern: str | None = None


class Augmentation(Section):
    """How training images are varied; shares of the image, degrees, or probabilities, as Ultralytics names them."""

    mosaic: Share = 0.0
    close_mosaic: Share = 0.1
    hsv_h: Share = 0.015
    hsv_s: Share = 0.4
    hsv_v: Share = 0.3
    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Share = 0.05
    scale: Share = 0.1
    fliplr: Share = 0.0
    flipud: Share = 0.0


class SegmentationTrain(TrainSettings):
    """`model` is a YAML of this workload (digits-seg), an Ultralytics YAML (yolov8n-seg.yaml) or weights (yolov8m-seg.pt)."""

    model: str = "digits-seg"
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    image_size: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    momentum: Share = 0.9
    augmentation: Augmentation = Augmentation()


class SegmentationEvaluate(EvaluateSettings):
    """`confidence` is the lowest score that is measured (mAP needs a low one), `shown` the lowest that is drawn or predicted."""

    confidence: Share = 0.005
    shown: Share = 0.4
    iou: Share = 0.7
    max_detections: Annotated[int, Field(ge=1)] = 100


class SegmentationSettings(Settings):
    """Everything a user sets for segmentation."""

    parse: SegmentationParse = SegmentationParse()
    train: SegmentationTrain = SegmentationTrain()
    evaluate: SegmentationEvaluate = SegmentationEvaluate()

"""The one graph of segmentation that ships: camera images in, raw predictions and mask prototypes out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from contracts.workload import Graph

if TYPE_CHECKING:
    from workloads.segmentation.settings import SegmentationTrain

NAME = "segment"
PAD_VALUE = 114


class CameraGraph(nn.Module):
    """A SegmentationModel that takes images as a camera or OpenCV gives them.

    Colour order and the division by 255 are folded into the first convolution's weights, so they cost nothing at run
    time. Its padding adds zeros, which both steps leave zero: the fold is exact.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        if first.in_channels != 3:
            raise ValueError(f"the first convolution takes {first.in_channels} channels; images have 3")
        with torch.no_grad():
            first.weight.copy_(first.weight.flip(1) / 255)
        self.first = [first]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [batch, height, width, 3] BGR to predictions [batch, 4 + classes + masks, anchors] (centre x, centre y, width
        and height in input pixels, class scores, mask coefficients) and protos [batch, masks, height / 4, width / 4]."""
        pixels = images.permute(0, 3, 1, 2).to(self.first[0].weight.dtype)
        predictions, protos = self.model(pixels)
        return predictions.float(), protos.float()


def graphs(objective: nn.Module, settings: SegmentationTrain) -> dict[str, Graph]:
    """The shipping form of `objective.model`: a fused copy in eval mode on the CPU; the objective stays as it is."""
    model = inference_copy(objective.model)  # pyright: ignore[reportArgumentType]
    size = settings.image_size
    return {
        NAME: Graph(
            module=CameraGraph(model).eval(),
            inputs={"images": np.full((1, size, size, 3), PAD_VALUE, np.uint8)},
            outputs=("predictions", "protos"),
            dynamic={"images": {0: "batch"}, "predictions": {0: "batch"}, "protos": {0: "batch"}},
            preprocessing=preprocessing(size),
        )
    }


def inference_copy(model: nn.Module) -> nn.Module:
    """A deep copy that is fused (batch norm into convolutions) and whose head answers with tensors alone."""
    model = copy.deepcopy(model).cpu().float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head: Any = model.model[-1]  # pyright: ignore[reportIndexIssue]
    # A head that is also trained end to end (yolo26) ships its ordinary branch: one layout of outputs for every model.
    if head.end2end:
        head.end2end = False
    model.fuse(verbose=False)  # pyright: ignore[reportCallIssue]
    # `dynamic` makes the anchors anew in every call; otherwise they are cached under a shape that holds the batch size.
    head.export, head.dynamic, head.format = True, True, "onnx"
    return model


def preprocessing(size: int) -> dict[str, Any]:
    """What stays outside the graph, as data that travels with it."""
    return {
        "input": "images",
        "layout": "NHWC",
        "dtype": "uint8",
        "colour": "BGR",
        "letterbox": {
            "size": [size, size],
            "rule": "scale by the smaller ratio of the sides, centre, pad",
            "interpolation": "bilinear",
            "pad_value": PAD_VALUE,
        },
        "outputs": {
            "predictions": "[batch, 4 + classes + masks, anchors]: centre x, centre y, width, height in input pixels, class scores, "
            "mask coefficients",
            "protos": "[batch, masks, size / 4, size / 4]: a mask is sigmoid(coefficients @ protos) inside its box",
        },
    }

"""What segmentation learns: Ultralytics' network and loss, as a module that takes a batch and gives a loss."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contracts.files import replace_when_complete
from contracts.workload import Expected
from workloads.segmentation.settings import SegmentationTrain
from workloads.segmentation.yolo import make_model


class SegmentationObjective(nn.Module):
    """Batch in, losses out. `model` is Ultralytics' SegmentationModel.

    Its loss is normalised over the objects it is given, so it is computed for each ghost batch alone: however a global
    batch is divided, the sum is the same.
    """

    def __init__(self, model: nn.Module, settings: SegmentationTrain, *, expected_loss: Expected | None = None) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.ghost_batch = settings.ghost_batch
        self.expected_loss = expected_loss
        self._criterion: Any = None

    def supervised(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        """The objects that have both a box and a pixel of a mask, and those that have either, picture by picture."""
        boxes = batch["batch_idx"].long().bincount(minlength=len(batch["masks"]))
        masks = torch.tensor([len(one[one > 0].unique()) for one in batch["masks"]], device=boxes.device)
        return int(torch.minimum(boxes, masks).sum()), int(torch.maximum(boxes, masks).sum())

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`batch`: images uint8 [B, 3, H, W] RGB; masks [B, h, w]; batch_idx [N], cls [N, 1], bboxes [N, 4] as Ultralytics'.

        Gives `loss` (mean over the ghost batches), `weight` (their number) and the loss's parts.
        """
        images = batch["images"].float().div_(255).to(memory_format=torch.channels_last)
        if self._criterion is None:
            self._criterion = self.model.init_criterion()  # pyright: ignore[reportCallIssue]
        predictions = self.model(images)
        size = min(self.ghost_batch, len(images))
        slices = range(0, len(images), size)
        losses, names = [], ()
        for start in slices:
            loss, parts = self._criterion(_rows(predictions, start, start + size), _slice(batch, start, start + size))
            losses.append(loss / size)
            names = tuple(parts)
        mean = torch.stack(losses).mean(0)
        parts = {name: value.detach() for name, value in zip(names, mean, strict=True) if name != "sem_loss"}
        return {"loss": mean.sum(), "weight": torch.tensor(float(len(slices))), **parts}


def _rows(value: Any, start: int, stop: int) -> Any:
    """The same nested predictions for some of the images."""
    if isinstance(value, dict):
        return {key: _rows(item, start, stop) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows(item, start, stop) for item in value)
    return value[start:stop]


def _slice(batch: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """The labels of some of the images, numbered from 0."""
    chosen = (batch["batch_idx"] >= start) & (batch["batch_idx"] < stop)
    return {
        "batch_idx": batch["batch_idx"][chosen] - start,
        "cls": batch["cls"][chosen],
        "bboxes": batch["bboxes"][chosen],
        "masks": batch["masks"][start:stop],
    }


def _expected(model: Any, name: str, *, pretrained: bool) -> Expected:
    """Where the loss begins. Fresh heads take every distance to a box's side for equally likely. Their boxes count by how well
    they cover an object's, and together less than once where pictures have few or small ones, or none."""
    if pretrained:
        return f"its weights come from {name}, and where they begin depends on what they have seen"
    bins = model.model[-1].reg_max
    if bins == 1:
        return f"{name} finds the sides of boxes without a distribution, whose entropy would be known"
    return {"dfl_loss": (0.0, model.args.dfl * math.log(bins))}


def build(settings: SegmentationTrain, classes: Sequence[str], *, pretrained: bool) -> SegmentationObjective:
    """The objective with freshly initialised weights, or those that the setting names."""
    model = make_model(settings.model, classes, pretrained=pretrained, sha256=settings.weights_sha256)
    expected = _expected(model, settings.model, pretrained=pretrained and settings.model.endswith(".pt"))
    return SegmentationObjective(model, settings, expected_loss=expected)


def make_optimizer(objective: nn.Module, settings: SegmentationTrain) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum; weight decay on weights only, neither on biases nor on norms (as Ultralytics).

    Ultralytics multiplies its loss by the batch, so a learning rate for its SGD speaks of the sum over the samples, not of the
    mean: here the rate is multiplied instead, and the decay divided.
    """
    decayed = [value for value in objective.parameters() if value.requires_grad and value.ndim > 1]
    plain = [value for value in objective.parameters() if value.requires_grad and value.ndim <= 1]
    sgd = settings.optimizer == "SGD"
    scale = settings.global_batch if sgd else 1
    groups = [{"params": decayed, "weight_decay": settings.weight_decay / scale}, {"params": plain, "weight_decay": 0.0}]
    if sgd:
        rate = settings.learning_rate * scale
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999), fused=True)


def save(objective: nn.Module, path: Path, settings: SegmentationTrain, classes: Sequence[str]) -> None:
    """Write weights that `YOLO(path)` opens (Ultralytics' own checkpoint layout, weights in float32)."""
    import ultralytics

    fresh = make_model(settings.model, classes, pretrained=False)
    fresh.load_state_dict({key: value.detach().cpu() for key, value in objective.model.state_dict().items()})  # pyright: ignore
    fresh.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    fresh.args = {**dict(vars(fresh.args)), "task": "segment", "imgsz": settings.image_size}  # pyright: ignore
    checkpoint = {
        "epoch": -1,
        "model": fresh,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": {"task": "segment", "imgsz": settings.image_size, "model": settings.model},
        "date": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0",
    }
    with replace_when_complete(path) as temporary:
        torch.save(checkpoint, temporary)

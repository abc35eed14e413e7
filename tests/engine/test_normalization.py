"""Ghost batch normalisation: the same numbers however a batch is divided."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from contracts.errors import SlipwayError
from engine.normalization import GhostStatistics


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)).double()


def _trained(net: nn.Module, images: torch.Tensor, *, micro_batch: int) -> dict[str, torch.Tensor]:
    statistics = GhostStatistics(net, ghost_batch=4, num_ghosts=len(images) // 4)
    for part in images.split(micro_batch):
        (net(part).square().sum() / len(images)).backward()
    statistics.update(statistics.seen())
    gradients = {f"{name}.grad": value.grad for name, value in net.named_parameters() if value.grad is not None}
    return {**net.state_dict(), **gradients}


@pytest.mark.parametrize("micro_batch", [4, 8, 16])
def test_gradients_and_statistics_do_not_depend_on_the_micro_batch(micro_batch: int) -> None:
    images, net = torch.randn(16, 3, 8, 8, dtype=torch.float64), _net()
    reference, other = (_trained(copy.deepcopy(net), images, micro_batch=size) for size in (4, micro_batch))
    for name, value in reference.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-13, msg=name)


def test_one_ghost_batch_is_torchs_own_batch_norm() -> None:
    images, ours, theirs = torch.randn(4, 3, 8, 8, dtype=torch.float64), _net(), _net()
    statistics = GhostStatistics(ours, ghost_batch=4, num_ghosts=1)
    torch.testing.assert_close(ours(images), theirs(images))
    statistics.update(statistics.seen())
    for (name, mine), value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, value, msg=name)


def test_evaluation_uses_the_running_statistics() -> None:
    net = _net()
    GhostStatistics(net, ghost_batch=4, num_ghosts=1)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net.eval()(images), _net().eval()(images))


def test_statistics_over_single_samples_are_refused() -> None:
    with pytest.raises(SlipwayError, match="train.ghost_batch must be 2 or more"):
        GhostStatistics(_net(), ghost_batch=1, num_ghosts=16)

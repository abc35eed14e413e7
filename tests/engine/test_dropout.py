"""Masks that belong to samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from engine.dropout import KeyedDropout, SampleDropout
from engine.stream import Sample

CPU = torch.device("cpu")
SHARE, LENGTH, WIDTH = 0.25, 40, 256


def samples(*indices: int, draw: int = 0) -> list[Sample]:
    return [Sample(0, index, draw, 0.0) for index in indices]


def layers() -> tuple[nn.Sequential, SampleDropout]:
    model = nn.Sequential(nn.Dropout(SHARE), nn.Dropout(SHARE)).train()
    return model, SampleDropout(model, seed=0)


def kept(of: Sequence[Sample], *, layer: int = 0, length: int = LENGTH) -> torch.Tensor:
    """What a layer leaves of ones [samples, length, WIDTH]."""
    model, dropout = layers()
    dropout.meet(of, CPU)
    return model[layer](torch.ones(len(of), length, WIDTH))


def test_a_sample_keeps_its_masks_in_any_company() -> None:
    whole = kept(samples(0, 1, 2, 3))
    assert torch.equal(kept(samples(2, 3)), whole[2:]) and torch.equal(kept(samples(1, 0)), whole[[1, 0]])


def test_padding_behind_a_sample_changes_nothing_before_it() -> None:
    assert torch.equal(kept(samples(0, 1), length=7), kept(samples(0, 1))[:, :7])


def test_samples_draws_and_layers_have_masks_of_their_own() -> None:
    one = kept(samples(0, 1))
    others = [one.flip(0), kept(samples(0, 1, draw=1)), kept(samples(0, 1), layer=1)]
    both = [((one > 0) & (other > 0)).float().mean().item() for other in others]
    assert both == pytest.approx([(1 - SHARE) ** 2] * len(both), abs=0.01)


def test_as_much_is_dropped_as_was_asked_for_and_the_mean_stays() -> None:
    values = kept(samples(*range(8)))
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - SHARE)])
    noise = (SHARE * (1 - SHARE)) ** 0.5
    for sides in ((1, 2), (0, 1), (0, 2)):  # shares of samples, of columns and of places: each as far apart as chance has it
        shares = (values > 0).float().mean(sides)
        assert shares.mean().item() == pytest.approx(1 - SHARE, abs=0.005)
        assert shares.std().item() == pytest.approx(noise / (values.numel() / len(shares)) ** 0.5, rel=0.6)


def test_rows_and_columns_do_not_follow_each_other() -> None:
    centred = ((kept(samples(*range(8))) > 0).float() - (1 - SHARE)).view(-1, WIDTH) / (SHARE * (1 - SHARE)) ** 0.5
    for side in (centred, centred.T):
        alike = side @ side.T / side.shape[1]
        alike.fill_diagonal_(0)
        assert alike.abs().max() < 6 / side.shape[1] ** 0.5


def test_inputs_that_are_not_of_the_samples_are_dropped_from_as_in_torch() -> None:
    model, dropout = layers()
    dropout.meet(samples(0, 1), CPU)
    rows = torch.ones(3, WIDTH)
    torch.manual_seed(0)
    found = model[0](rows)
    torch.manual_seed(0)
    assert torch.equal(found, nn.functional.dropout(rows, SHARE))
    assert torch.equal(model.eval()(torch.ones(2, WIDTH)), torch.ones(2, WIDTH))


def test_a_copy_of_the_model_drops_the_same() -> None:
    model, dropout = layers()
    other = copy.deepcopy(model)
    dropout.meet(samples(5, 6), CPU)
    assert isinstance(other[0], KeyedDropout) and torch.equal(other(torch.ones(2, WIDTH)), model(torch.ones(2, WIDTH)))

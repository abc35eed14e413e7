"""Weights in a file: all of a module's, a tied one once, and nothing loaded that is not the module's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from contracts.errors import SlipwayError
from engine.weights import read_weights, save_weights


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head, self.bias = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Parameter(torch.randn(0))
        self.head.weight = self.words.weight


def test_a_tied_weight_is_written_once_and_read_into_both(tmp_path: Path) -> None:
    before, after = Tied(), Tied()
    save_weights(before.state_dict(), tmp_path / "weights.safetensors")
    assert sorted(load_file(tmp_path / "weights.safetensors")) == ["bias", "words.weight"]
    read_weights(after, tmp_path / "weights.safetensors")
    assert torch.equal(after.head.weight, before.words.weight)


def test_two_weights_that_only_look_alike_are_both_written(tmp_path: Path) -> None:
    twins = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    twins[1].load_state_dict(twins[0].state_dict())
    save_weights(twins.state_dict(), tmp_path / "weights.safetensors")
    assert len(load_file(tmp_path / "weights.safetensors")) == 4


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"words.weight": torch.zeros(5, 3)}, "missing bias"),
        ({"words.weight": torch.zeros(5, 3), "bias": torch.zeros(0), "more": torch.zeros(1)}, "unknown more"),
        ({"words.weight": torch.zeros(4, 3), "bias": torch.zeros(0)}, "size mismatch"),
        ({"bias": torch.zeros(0)}, "missing words.weight, head.weight"),
    ],
)
def test_weights_of_another_module_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str) -> None:
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=reason):
        read_weights(Tied(), tmp_path / "weights.safetensors")


def test_one_flipped_bit_of_a_file_anywhere_is_noticed_or_changes_no_weight(tmp_path: Path) -> None:
    path, before = tmp_path / "weights.safetensors", Tied()
    save_weights(before.state_dict(), path)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        after = Tied()
        try:
            read_weights(after, path)
            assert torch.equal(after.words.weight, before.words.weight)
        except SlipwayError as error:
            assert f"{path} is damaged" in str(error)
            refused += 1
    assert refused > before.words.weight.nbytes


def test_a_file_without_a_hash_is_read(tmp_path: Path) -> None:
    save_file({"words.weight": torch.ones(5, 3), "bias": torch.zeros(0)}, tmp_path / "weights.safetensors")
    after = Tied()
    read_weights(after, tmp_path / "weights.safetensors")
    assert torch.equal(after.head.weight, torch.ones(5, 3))

"""Batches of samples that are about equally long: the same for every layout, each sample once, and little padding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import SlipwayError
from engine import loop as engine_loop
from engine.preflight.rehearsal import Rehearsal
from engine.stream import Stream
from tests.engine.tiny_workload import Tiny, tiny_spec

LENGTHS = np.random.default_rng(0).integers(1, 60, 1003)


def lengths(indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Another caption at every draw."""
    return LENGTHS[(indices + 7 * draws) % len(LENGTHS)]


def padding(stream: Stream, micro_batch: int) -> int:
    """What is padded when every micro-batch is as long as its longest sample."""
    total = 0
    for step in range(stream.num_steps):
        batch = stream.batch(step)
        for start in range(0, len(batch), micro_batch):
            part = batch[start : start + micro_batch]
            found = lengths(np.array([one.index for one in part]), np.array([one.draw for one in part]))
            total += int(found.max() * len(part) - found.sum())
    return total


def epochs(stream: Stream) -> Counter[tuple[int, int, int]]:
    return Counter((one.epoch, one.index, one.draw) for step in range(stream.num_steps) for one in stream.batch(step))


@pytest.mark.parametrize(("num_records", "global_batch", "buckets"), [(1003, 16, 10), (50, 16, 9), (5, 16, 3), (96, 8, 1)])
def test_every_epoch_draws_what_it_draws_without_buckets(num_records: int, global_batch: int, buckets: int) -> None:
    plain = Stream(num_records, global_batch, 3, seed=1)
    assert epochs(Stream(num_records, global_batch, 3, 1, buckets=buckets, lengths=lengths)) == epochs(plain)
    weights = np.arange(num_records, dtype=np.float64) % 5 + 0.5
    weighted = Stream(num_records, global_batch, 3, 1, weights=weights)
    assert epochs(Stream(num_records, global_batch, 3, 1, weights, buckets, lengths)) == epochs(weighted)


def test_batches_of_one_length_are_shuffled_and_others_are_sorted_within() -> None:
    stream = Stream(1003, 16, 2, 1, buckets=20, lengths=lengths)
    means = []
    for step in range(20):
        batch = stream.batch(step)
        found = lengths(np.array([one.index for one in batch]), np.array([one.draw for one in batch]))
        assert (np.diff(found) <= 0).all()
        means.append(found.mean())
    assert max(means) == means[0], "the run begins with what needs most memory"
    assert sorted(means) != means != sorted(means, reverse=True)
    assert stream.batch(3) != Stream(1003, 16, 2, 2, buckets=20, lengths=lengths).batch(3)


def test_more_buckets_pad_less_and_micro_batches_less_still() -> None:
    padded = {
        (buckets, micro): padding(Stream(1003, 16, 3, 1, buckets=buckets, lengths=lengths), micro)
        for buckets in (0, 1, 10, 60)
        for micro in (16, 4)
    }
    assert padded[0, 16] > 2 * padded[10, 16] > 3 * padded[60, 16]
    assert padded[0, 4] > 2 * padded[1, 4], "one batch at a time: the micro-batches of a batch are cut by length"
    assert padded[10, 4] < padded[10, 16]


def test_any_step_alone_gives_what_the_whole_run_gives() -> None:
    def anew() -> Stream:
        return Stream(1003, 16, 3, 1, buckets=10, lengths=lengths)

    whole = [anew().batch(step) for step in range(anew().num_steps)]
    assert all(anew().batch(step) == whole[step] for step in (188, 62, 63, 5, 100))
    shares = [list(anew().share(7, rank=rank, ranks=2, micro_batch=4)) for rank in range(2)]
    assert Counter(one for share in shares for micro in share for one in micro) == Counter(whole[7])


def test_a_workload_without_lengths_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "load", lambda name: Tiny())
    with pytest.raises(SlipwayError, match=r"train.length_buckets = 5, and nothing in tiny is longer .* set it to 0"):
        Rehearsal(tiny_spec(tmp_path, length_buckets=5))

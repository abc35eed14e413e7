"""The order of samples: what the seeds got wrong, each rank training on the same batches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from engine.randomness import generator
from engine.schedule import learning_rate_factor
from engine.stream import Stream


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 16), (1, 4), (2, 4), (4, 2), (8, 2), (2, 8)])
def test_the_ranks_together_take_each_sample_of_a_batch_once(ranks: int, micro_batch: int) -> None:
    stream = Stream(num_records=50, global_batch=16, epochs=3, seed=7)
    for step in range(stream.num_steps):
        shares = [list(stream.share(step, rank=rank, ranks=ranks, micro_batch=micro_batch)) for rank in range(ranks)]
        taken = [sample for share in shares for micro in share for sample in micro]
        assert Counter(taken) == Counter(stream.batch(step))
        assert {len(micro) for share in shares for micro in share} == {micro_batch}


@pytest.mark.parametrize(("num_records", "global_batch"), [(50, 16), (16, 16), (5, 16), (1, 4), (97, 8)])
def test_every_epoch_draws_every_record_once(num_records: int, global_batch: int) -> None:
    stream = Stream(num_records, global_batch, epochs=4, seed=0)
    drawn = Counter((sample.epoch, sample.index) for step in range(stream.num_steps) for sample in stream.batch(step))
    assert set(drawn.values()) == {1}
    assert all((epoch, index) in drawn for epoch in range(4) for index in range(num_records))


def test_epochs_end_as_often_as_there_are_epochs() -> None:
    for num_records, global_batch, epochs in [(50, 16, 3), (1200, 16, 9), (7, 2, 5), (64, 16, 1)]:
        stream = Stream(num_records, global_batch, epochs, seed=0)
        assert sum(stream.ends_epoch(step) for step in range(stream.num_steps)) == epochs


def test_epochs_have_different_orders_and_seeds_too() -> None:
    one, other = Stream(40, 40, 2, seed=0), Stream(40, 40, 2, seed=1)
    orders = [[sample.index for sample in stream.batch(step)] for stream in (one, other) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_randomness_depends_on_its_key_alone() -> None:
    assert generator(0, "sample", 3, 4).integers(2**60) == generator(0, "sample", 3, 4).integers(2**60)
    assert generator(0, "sample", 3, 4).integers(2**60) != generator(0, "sample", 4, 3).integers(2**60)


def test_the_schedule_warms_up_and_ends_at_its_end() -> None:
    factors = [learning_rate_factor(step, num_steps=100, warmup_steps=10, final=0.01) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.01)
    assert all(before >= after for before, after in pairwise(factors[10:]))

"""Records drawn in proportion to weights: how often, on which ranks, after a resume, and what each draw is told apart by."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import SlipwayError
from engine import loop as engine_loop
from engine.drawing import Draws
from engine.feeding import feed
from engine.preflight.batches import digested, rank_batches
from engine.preflight.rehearsal import Rehearsal
from engine.stream import Stream
from tests.engine.tiny_workload import Tiny, TinyDataset, tiny_spec

WEIGHTS = np.random.default_rng(0).gamma(0.5, size=97)
SHARES = 97 * WEIGHTS / WEIGHTS.sum()


def test_a_record_is_drawn_as_often_as_its_share_rounded_down_or_up() -> None:
    for epoch in range(50):
        times = Draws(97, 0, WEIGHTS).times(epoch)
        assert times.sum() == 97
        assert ((times == np.floor(SHARES)) | (times == np.ceil(SHARES))).all()


def test_over_many_epochs_and_seeds_a_record_is_drawn_as_often_as_its_share() -> None:
    """The mean of N draws of 0 or 1 more is within 5 deviations of at most 1/2 each."""
    found = [Draws(97, seed, WEIGHTS).times(epoch) for seed in range(40) for epoch in range(100)]
    assert np.abs(np.mean(found, axis=0) - SHARES).max() < 5 * 0.5 / np.sqrt(len(found))


def test_records_of_one_weight_are_together_drawn_as_often_as_they_should_be() -> None:
    weights = np.where(np.arange(1000) % 3 == 0, 0.25, 2.0)
    share = 1000 * weights[weights < 1].sum() / weights.sum()
    drawn = [Draws(1000, 0, weights).times(epoch)[weights < 1] for epoch in range(20)]
    assert {int(one.sum()) for one in drawn} <= {int(share), int(share) + 1}
    assert len({one.tobytes() for one in drawn}) == 20


@pytest.mark.parametrize("weight", [1.0, 0.1, 7e-12, 3e17])
def test_equal_weights_give_the_stream_without_any(weight: float) -> None:
    plain, weighted = Stream(97, 8, 4, seed=3), Stream(97, 8, 4, seed=3, weights=np.full(97, weight))
    assert [plain.batch(step) for step in range(plain.num_steps)] == [
        weighted.batch(step) for step in range(plain.num_steps)
    ]


def test_a_weight_of_nothing_is_never_drawn() -> None:
    weights = np.where(np.arange(97) < 90, 0.0, WEIGHTS)
    assert all((Draws(97, 0, weights).times(epoch)[:90] == 0).all() for epoch in range(50))


def test_the_draws_of_a_record_are_counted_through_the_run() -> None:
    stream = Stream(97, 8, 5, seed=1, weights=WEIGHTS)
    samples = [one for step in range(stream.num_steps) for one in stream.batch(step)]
    assert len({(one.index, one.draw) for one in samples}) == len(samples)
    for epoch in range(5):
        for index, times in enumerate(stream.draws.times(epoch)):
            drawn = sorted(one.draw for one in samples if (one.epoch, one.index) == (epoch, index))
            before = int(stream.draws.before(epoch)[index])
            assert drawn == list(range(before, before + times))


def test_a_resumed_run_and_any_number_of_ranks_draw_the_same() -> None:
    stream = Stream(97, 16, 5, seed=1, weights=WEIGHTS)
    whole = [stream.batch(step) for step in range(stream.num_steps)]
    for step in (30, 29, 3, 12):
        assert Stream(97, 16, 5, seed=1, weights=WEIGHTS).batch(step) == whole[step] == stream.batch(step)
    for ranks, micro_batch in ((2, 4), (4, 2), (2, 8)):
        shares = [list(stream.share(7, rank=rank, ranks=ranks, micro_batch=micro_batch)) for rank in range(ranks)]
        assert Counter(one for share in shares for micro in share for one in micro) == Counter(whole[7])


@pytest.fixture
def weighted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """A run of 64 rows of which a few are drawn most of the time."""
    monkeypatch.setattr(engine_loop, "load", lambda name: Tiny())
    np.save(tmp_path / "sampling_weights.npy", np.where(np.arange(64) < 8, 20.0, 1.0))
    return Rehearsal(replace(tiny_spec(tmp_path), sampling_weights=str(tmp_path / "sampling_weights.npy")))


def test_two_draws_of_a_record_in_one_epoch_are_augmented_differently(weighted: Rehearsal, tmp_path: Path) -> None:
    loop = weighted
    batches = feed(TinyDataset(loop.records), loop.stream, loop.plan, rank=0, first_step=0, beacons=tmp_path)
    drawn = [one for samples, batch in itertools.islice(batches, 16) for one in digested(samples, batch)]
    most = Counter(one.index for one in drawn).most_common(1)[0]
    assert len(drawn) == 64 and most[1] > 5
    assert len({one.hash for one in drawn if one.index == most[0]}) == most[1]


@pytest.mark.parametrize(("fed", "state"), [((0, 1), "passed"), ((0, 0), "failed")])
def test_the_check_of_rank_batches_knows_draws_apart(
    weighted: Rehearsal, tmp_path: Path, fed: tuple[int, int], state: str
) -> None:
    loop = weighted
    loop.plan = replace(loop.plan, ranks=2, accumulation=1)
    feeds = [
        feed(TinyDataset(loop.records), loop.stream, loop.plan, rank=rank, first_step=0, beacons=tmp_path) for rank in fed
    ]
    shares = [[digested(samples, batch) for samples, batch in itertools.islice(one, 2)] for one in feeds]
    assert rank_batches(loop, shares).state == state


def test_a_stream_that_draws_too_often_is_found(weighted: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "share", lambda self, step, **parts: iter([self.batch(0)]))
    finding = rank_batches(weighted, [[]])
    assert finding.state == "failed"
    assert "times in the first epoch" in finding.reason


def test_weights_of_other_records_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "load", lambda name: Tiny())
    np.save(tmp_path / "sampling_weights.npy", np.ones(63))
    with pytest.raises(SlipwayError, match=r"sampling_weights.npy has 63 weights for 64 records: run prepare again"):
        Rehearsal(replace(tiny_spec(tmp_path), sampling_weights=str(tmp_path / "sampling_weights.npy")))

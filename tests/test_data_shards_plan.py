from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import PlanError
from data_shards.plan import WINDOW_SHARDS, EpochPlan
from tests.datasets import index_of

SHARD_SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=20)
WORLDS = st.integers(1, 16)


def plans(sizes, world_size, batch_size, **options):
    return [
        EpochPlan(
            index=index_of(sizes),
            split="train",
            batch_size=batch_size,
            world_size=world_size,
            rank=rank,
            **options,
        )
        for rank in range(world_size)
    ]


def ids_of(plan, start=0):
    return [number for batch in range(start, plan.batches) for number in plan.ids(batch).tolist()]


@given(SHARD_SIZES, WORLDS, st.integers(1, 64), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_training_sees_every_sample_once_in_equal_batches(sizes, world_size, batch_size, seed, epoch):
    try:
        ranks = plans(sizes, world_size, batch_size, seed=seed, epoch=epoch)
    except PlanError:
        steps = -(-sum(sizes) // batch_size)
        assert sum(sizes) // steps < world_size  # only a step without an image for every rank is refused
        return

    seen = [number for plan in ranks for number in ids_of(plan)]

    assert sorted(seen) == list(range(sum(sizes)))
    assert len({plan.batches for plan in ranks}) == 1
    for batch in range(ranks[0].batches):
        of_ranks = [len(plan.ids(batch)) for plan in ranks]
        assert max(of_ranks) - min(of_ranks) <= 1
        assert sum(of_ranks) <= batch_size


@given(SHARD_SIZES, st.integers(1, 64), st.integers(0, 9))
def test_steps_differ_in_size_by_at_most_one(sizes, batch_size, epoch):
    (plan,) = plans(sizes, 1, batch_size, epoch=epoch)

    steps = [len(plan.ids(batch)) for batch in range(plan.batches)]

    assert max(steps) - min(steps) <= 1


@given(SHARD_SIZES, WORLDS, st.integers(1, 64))
def test_evaluation_sees_every_sample_once_with_any_world(sizes, world_size, batch_size):
    ranks = plans(sizes, world_size, batch_size, shuffle=False)

    seen = [number for plan in ranks for number in ids_of(plan)]

    assert seen == list(range(sum(sizes)))


@given(SHARD_SIZES, WORLDS, st.integers(1, 64), st.booleans())
def test_the_largest_batch_of_all_ranks_is_known(sizes, world_size, batch_size, shuffle):
    try:
        ranks = plans(sizes, world_size, batch_size, shuffle=shuffle)
    except PlanError:  # a step without an image for every rank
        return

    largest = max(len(plan.ids(batch)) for plan in ranks for batch in range(plan.batches))

    assert {plan.largest_batch for plan in ranks} == {largest}


@given(st.integers(0, 15))
def test_evaluation_with_more_ranks_than_samples_leaves_ranks_without_batches(rank):
    plan = plans([2, 1], 16, 64, shuffle=False)[rank]

    assert plan.batches == len(ids_of(plan)) <= 1


@given(SHARD_SIZES, st.integers(1, 8), st.integers(1, 8), st.data())
def test_a_resumed_epoch_neither_repeats_nor_skips_even_in_another_world(sizes, before, after, data):
    batch_size = 16
    try:
        first, second = plans(sizes, before, batch_size, seed=7), plans(sizes, after, batch_size, seed=7)
    except PlanError:
        return
    stop = data.draw(st.integers(0, first[0].batches))

    done = [number for plan in first for batch in range(stop) for number in plan.ids(batch).tolist()]
    rest = [number for plan in second for number in ids_of(plan, start=stop)]

    assert sorted(done + rest) == list(range(sum(sizes)))


def test_the_order_depends_on_seed_and_epoch_alone():
    sizes = [5, 9, 3, 11]

    one, again = plans(sizes, 1, 8, seed=1, epoch=2), plans(sizes, 1, 8, seed=1, epoch=2)
    other_epoch, other_seed = plans(sizes, 1, 8, seed=1, epoch=3), plans(sizes, 1, 8, seed=2, epoch=2)

    assert ids_of(one[0]) == ids_of(again[0])
    assert ids_of(one[0]) != ids_of(other_epoch[0])
    assert ids_of(one[0]) != ids_of(other_seed[0])


def test_a_step_has_the_same_samples_in_every_world():
    alone, together = plans([20, 20], 1, 10, seed=3)[0], plans([20, 20], 4, 10, seed=3)

    for batch in range(alone.batches):
        parts = np.concatenate([plan.ids(batch) for plan in together])
        assert parts.tolist() == alone.ids(batch).tolist()


def test_reading_stays_within_a_window_of_shards():
    sizes = [4] * (3 * WINDOW_SHARDS)
    (plan,) = plans(sizes, 1, 4)

    shards = [number // 4 for number in ids_of(plan)]

    windows = [set(shards[w : w + 4 * WINDOW_SHARDS]) for w in range(0, len(shards), 4 * WINDOW_SHARDS)]
    assert [len(window) for window in windows] == [WINDOW_SHARDS] * 3
    assert all(not a & b for a, b in pairwise(windows))


def test_a_step_too_small_for_the_workers_is_refused_with_a_cure():
    with pytest.raises(PlanError, match="leaves some of 4 workers without an image; use --workers 3"):
        plans([3], 4, 4)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(PlanError, match="split 'test' has no samples; the data set has train"):
        EpochPlan(index=index_of([3]), split="test", batch_size=2)


@settings(max_examples=20)
@given(st.integers(-3, 40))
def test_a_batch_outside_the_epoch_is_refused(batch):
    (plan,) = plans([10], 1, 5)

    if 0 <= batch < 2:
        assert len(plan.ids(batch)) == 5
    else:
        with pytest.raises(PlanError, match="outside the 2 batches"):
            plan.ids(batch)

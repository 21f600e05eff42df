"""The order of examples and the random numbers: pure functions of seed and position."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import AugmentConfig, Config, DataConfig
from trainer.data.order import epoch_indices, epoch_size, replacement, uniform
from trainer.data.streams import Stream, augment_streams
from trainer.errors import UserError

MANY = settings(max_examples=25, deadline=None)


def indices(config: Config, num_examples: int, start: int, length: int) -> np.ndarray:
    positions = start + tf.range(length, dtype=tf.int64)
    return epoch_indices(config, num_examples, positions).numpy()


def indices_from(config: Config, num_examples: int, length: int):
    """`indices` as a function of `start`, in one graph: for many calls."""
    positions = tf.range(length, dtype=tf.int64)
    function = tf.function(lambda start: epoch_indices(config, num_examples, start + positions))
    return lambda start: function(tf.constant(start, tf.int64)).numpy()


def seeded(seed: int, **data) -> Config:
    return Config(seed=seed, data=DataConfig(**data))


@MANY
@given(
    num_examples=st.integers(1, 300),
    epoch=st.integers(0, 10_000),
    seed=st.integers(0, 2**31 - 1),
    repeats=st.integers(1, 3),
    shuffle=st.sampled_from(["full", "blocks"]),
    block=st.integers(1, 400),
)
def test_every_epoch_is_a_permutation_of_the_repeated_list(
    num_examples, epoch, seed, repeats, shuffle, block
):
    config = seeded(seed, repeats=repeats, shuffle=shuffle, shuffle_block_size=block)
    size = epoch_size(config, num_examples)
    assert size == repeats * num_examples
    found = indices(config, num_examples, epoch * size, size)
    assert sorted(found) == sorted(list(range(num_examples)) * repeats)


@pytest.mark.parametrize("num_examples", [2**16, 2**16 + 1, 2**18 + 1, 2**20 + 1])
@pytest.mark.parametrize("block", [None, 2**16 + 1])
def test_epochs_of_a_size_that_the_cipher_gets_wrong(num_examples, block):
    """TensorFlow's shuffle of 2^k + 1 numbers, alone, has one twice and one never."""
    config = seeded(5) if block is None else seeded(5, shuffle="blocks", shuffle_block_size=block)
    found = indices(config, num_examples, 3 * num_examples, num_examples)
    np.testing.assert_array_equal(np.sort(found), np.arange(num_examples))


@MANY
@given(
    start=st.integers(0, 10_000),
    length=st.integers(1, 200),
    cut=st.integers(0, 200),
    shuffle=st.sampled_from(["full", "blocks"]),
    repeats=st.integers(1, 3),
)
def test_a_batch_across_epochs_is_its_parts(start, length, cut, shuffle, repeats):
    config = seeded(3, shuffle=shuffle, shuffle_block_size=7, repeats=repeats)
    cut = min(cut, length)
    whole = indices(config, 37, start, length)
    parts = [(start, cut), (start + cut, length - cut)]
    parts = [indices(config, 37, *part) for part in parts if part[1]]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_repeats_are_near_and_never_side_by_side_in_a_pair():
    """Mixup and CutMix mix positions 2k and 2k+1."""
    config = seeded(0, repeats=3)
    found = indices(config, 40, 0, 120)
    np.testing.assert_array_equal(found[::6], found[2::6])
    np.testing.assert_array_equal(found[1::6], found[5::6])
    assert (found[::2] != found[1::2]).all()
    first_of_pair = found.reshape(20, 6)[:, :2].ravel()
    np.testing.assert_array_equal(first_of_pair, indices(seeded(0), 40, 0, 40))


def test_blocks_are_neighbours_that_begin_elsewhere_in_each_epoch():
    config = seeded(0, shuffle="blocks", shuffle_block_size=10)
    beginnings, orders = set(), set()
    epoch_from = indices_from(config, 95, 95)
    for epoch in range(40):
        blocks = epoch_from(95 * epoch)[:90].reshape(9, 10)
        for block in blocks:
            steps = np.diff(np.sort(block))
            assert (np.sort(steps)[:-1] == 1).all()  # neighbours, around the end too
            assert steps.max() in (1, 86)
            orders.add(tuple((block - block.min()) % 95))
        beginnings.add(int(blocks[0].min()) % 10)
    assert len(beginnings) > 5
    assert len(orders) > 300  # of 360: each block in its own order


def _chi_square(values: np.ndarray, bins: int) -> float:
    """Returns χ² for uniform values in [0, 1), as standard deviations from its mean."""
    counts, _ = np.histogram(values, bins, (0, 1))
    expected = len(values) / bins
    return (((counts - expected) ** 2 / expected).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1))


def test_epochs_and_seeds_have_independent_orders():
    """In particular epochs 256 apart, which RandomIndexShuffle alone would give one order."""
    num_examples = 1437
    orders = {
        (seed, epoch): indices(seeded(seed), num_examples, epoch * num_examples, num_examples)
        for seed, epoch in [(0, 0), (0, 1), (0, 2), (0, 256), (0, 257), (1, 0), (256, 0), (257, 1)]
    }
    for key, order in orders.items():
        for other_key, other in orders.items():
            if key != other_key:
                # Two random permutations agree in one place, Poisson: over 10 has chance 1e-8.
                assert np.sum(order == other) <= 10, (key, other_key)
    first_from = indices_from(seeded(0), num_examples, 1)
    places = np.array([first_from(epoch * num_examples)[0] for epoch in range(1000)])
    assert abs(_chi_square(places / num_examples, 20)) < 5  # the first example of each epoch
    neighbours = orders[0, 0]
    assert abs(_chi_square((np.diff(neighbours) % num_examples) / num_examples, 20)) < 5


def test_uniform_is_uniform_and_independent_between_positions_streams_and_seeds():
    positions = tf.range(100_000, dtype=tf.int64)
    first = uniform(positions, 0, 1).numpy()
    assert first.min() >= 0
    assert first.max() < 1
    others = [uniform(positions, 0, 2).numpy(), uniform(positions, 1, 1).numpy(), np.roll(first, 1)]
    others += [uniform(positions, 256, 1).numpy(), uniform(positions, 0, 257).numpy()]
    assert abs(_chi_square(first, 100)) < 5
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(len(first))
        assert abs(_chi_square((first + other) % 1, 100)) < 5


def test_a_replacement_is_another_example_and_spread_over_all():
    config = seeded(0)
    numbers = [
        int(replacement(config, 1000, tf.constant(index, tf.int64), tf.constant(n, tf.int64)))
        for index in range(100)
        for n in (1, 2)
    ]
    assert len(set(numbers)) > 170  # 181 are expected
    itself = replacement(config, 1000, tf.constant(7, tf.int64), tf.constant(0, tf.int64))
    assert int(itself) == 7


def test_no_two_uses_share_a_stream():
    """The policy with most layers; the model's streams begin at 1000."""
    (most_layers,) = (n for n in range(1, 100) if not accepted(n + 1) and accepted(n))
    uses = [
        *(stream for stream in Stream if stream != Stream.AUGMENT),
        *augment_streams(most_layers),
    ]
    assert len(Stream.__members__) == len(Stream)  # an enum makes aliases of equal numbers
    assert len(set(uses)) == len(uses)
    assert all(0 <= stream < 1000 for stream in uses)
    assert Stream.RANDOM_RESIZED_CROP < 8


def accepted(num_layers: int) -> bool:
    try:
        AugmentConfig("randaugment", num_layers)
    except UserError:
        return False
    return True


def test_the_numbers_of_streams_stay():
    """A run that began with an earlier version resumes with the same choices."""
    numbers = [0, 1, 2, 3, 4, 10, *range(60, 68), *range(70, 74), *range(100, 104)]
    assert [int(stream) for stream in Stream] == numbers
    assert [*augment_streams(2)] == [10, 11, 12, 13, 14, 15]

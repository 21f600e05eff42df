"""The order of examples and every random choice: pure functions of the seed and the position.

Example `i` of step `s` has the position `p = s * global_batch_size + i` in the run. An epoch has
`E = repeats * N` places: the example's epoch is `p // E`, and its index is at place `p mod E` of
that epoch's permutation. So a run resumes by seeking, in O(1), and the order does not depend on the
number of workers.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer.config import Config
from trainer.data.streams import Stream

# RandomIndexShuffle is format-preserving encryption, with the Simon cipher. With its default of
# four rounds, neighbouring positions are visibly correlated. From 12 on, no test in tests/ can tell
# it from random numbers.
_ROUNDS = 16
_RESOLUTION = 2**53  # evenly spaced values of a float64 in [0, 1)


def epoch_size(config: Config, num_examples: int) -> int:
    """Returns the number of positions in an epoch: every example `data.repeats` times."""
    return config.data.repeats * num_examples


def epoch_indices(config: Config, num_examples: int, positions: tf.Tensor) -> tf.Tensor:
    """Returns the example at each position of the run: int64 `[n]`, in `[0, num_examples)`.

    Every epoch is a permutation of the examples. With repeated augmentation (Hoffer et al. 2020),
    each example comes `data.repeats` times. The copies are close together, so that they share a
    batch, but not adjacent, since mixup and CutMix would mix an image with itself. The permutation
    a, b, c, d, repeated twice, is a, b, a, b, c, d, c, d.

    Args:
        positions: int64 `[n]`, ascending; they may cross the ends of epochs.
    """
    repeats = config.data.repeats
    epochs, places = positions // (repeats * num_examples), positions % (repeats * num_examples)
    pair, inside = places // (2 * repeats), places % (2 * repeats)
    # If the number of examples is odd, the last one has no partner.
    places = tf.minimum(2 * pair + inside % 2, num_examples - 1)
    if config.data.shuffle == "full":
        return _permuted(config.seed, Stream.ORDER, epochs, places, num_examples)
    return _permuted_in_blocks(config, epochs, places, num_examples)


def _permuted_in_blocks(
    config: Config, epochs: tf.Tensor, places: tf.Tensor, num_examples: int
) -> tf.Tensor:
    """Permutes blocks of neighbours, then the inside of each, so that a disk or a network reads
    neighbours together.

    Blocks begin at another place in each epoch: else the last block, which is shorter, would always
    have the same examples.
    """
    size = min(config.data.shuffle_block_size, num_examples)
    whole = num_examples // size  # blocks; the rest is the last block
    block, inside = places // size, places % size
    is_whole = block < whole
    block_sizes = tf.where(is_whole, tf.constant(size, tf.int64), num_examples - whole * size)
    number = epochs * (whole + 1) + block  # counts the blocks of all epochs

    def chosen(number: tf.Tensor) -> tf.Tensor:
        epoch, block = number // (whole + 1), number % (whole + 1)
        place = tf.minimum(block, whole - 1)
        permuted = _permuted(config.seed, Stream.BLOCK_ORDER, epoch[None], place[None], whole)[0]
        return tf.where(block < whole, permuted, block)

    def shift(epoch: tf.Tensor) -> tf.Tensor:
        seed = _fold(config.seed, Stream.BLOCK_SHIFT, epoch)
        return tf.random.stateless_uniform([], seed, 0, num_examples, tf.int64, alg="philox")

    inside = _permuted(config.seed, Stream.INSIDE_BLOCK, number, inside, block_sizes)
    first = _by_number(number, chosen) * size + _by_number(epochs, shift)
    return (first + inside) % num_examples


def replacement(config: Config, num_examples: int, index: tf.Tensor, attempt: tf.Tensor):
    """Returns the index of the example that replaces a bad one at an attempt, counted from 1.

    Attempt 0 is the example itself. All are int64 scalars.
    """
    key = _key(config.seed, Stream.REPLACEMENT, attempt)
    other = _shuffle(index[None], key[None], tf.constant([num_examples], tf.int64))[0]
    return tf.where(attempt == 0, index, other)


def _fold(seed: int, stream: int, number: tf.Tensor | int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, stream], tf.int64), number, alg="philox"
    )


def _key(seed: int, stream: int, number: tf.Tensor | int) -> tf.Tensor:
    """Returns three int64 numbers, a hash of the arguments.

    The cipher reads only the low 8 bits of each: with the epoch itself as a number of the key,
    epoch 257 would repeat the order of epoch 1.
    """
    folded = _fold(seed, stream, number)
    return tf.random.stateless_uniform([3], folded, 0, 256, tf.int64, alg="philox")


def _by_number(numbers: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Returns `function` of each number, computed once per number; they are close together."""
    first, last = tf.reduce_min(numbers), tf.reduce_max(numbers)
    values = tf.map_fn(function, tf.range(first, last + 1))
    return tf.gather(values, numbers - first)


def _permuted(
    seed: int, stream: int, numbers: tf.Tensor, places: tf.Tensor, size: tf.Tensor | int
) -> tf.Tensor:
    """Returns the element at each place of a permutation of `range(size)`, int64 `[n]`.

    Args:
        numbers: which permutation, int64 `[n]`, close together.
        places: int64 `[n]`, in `[0, size)`.
        size: of the permutations: one for all, or int64 `[n]`.
    """
    sizes = tf.broadcast_to(tf.cast(size, tf.int64), tf.shape(places))
    keys = _by_number(numbers, lambda number: _key(seed, stream, number))
    return _shuffle(places, keys, sizes)


def _shuffle(places: tf.Tensor, keys: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Shuffles by RandomIndexShuffle, and repairs the sizes for which it is not a permutation: of
    2^k + 1 numbers (k even, from 16 on) TensorFlow 2.21 maps the last to the same as the first.

    For those sizes it shuffles one number more. If that one comes out, it is shuffled again, as the
    cipher itself does with results out of range.

    Args:
        places: int64 `[n]`, in `[0, size)`.
        keys: int64 `[n, 3]`.
        sizes: int64 `[n]`.
    """
    last = sizes - 1
    one_more = tf.where((last > 0) & (tf.bitwise.bitwise_and(last, last - 1) == 0), 1, 0)
    last += tf.cast(one_more, tf.int64)

    def shuffle(index: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.RandomIndexShuffle(index=index, seed=keys, max_index=last, rounds=_ROUNDS)

    shuffled = shuffle(places)
    outside = shuffled >= sizes
    return tf.cond(
        tf.reduce_any(outside),
        lambda: tf.where(outside, shuffle(tf.where(outside, shuffled, 0)), shuffled),
        lambda: shuffled,
    )


def uniform(positions: tf.Tensor, seed: int, stream: int) -> tf.Tensor:
    """Returns a random number in [0, 1) for each position, float32 `[n]`.

    Args:
        positions: int64 `[n]`, below 2**53.
        stream: see streams.py; streams are independent.
    """
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=_key(seed, stream, 0),
        max_index=tf.constant(_RESOLUTION - 1, tf.int64),
        rounds=_ROUNDS,
    )
    # 24 bits, the most that float32 holds without rounding up to 1.
    return tf.cast(shuffled // 2**29, tf.float32) / 2.0**24

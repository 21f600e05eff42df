"""The order of examples and every random choice: pure functions of the seed and the position.

Example `i` of step `s` has the position `p = s * global_batch_size + i` in the run; its epoch is
`p // E`, where an epoch has `E = repeats * N` places, and its index is what that epoch's
permutation has at `p mod E`. So going on after a kill is seeking, in O(1), and the order does not
depend on the number of workers.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer.config import Config
from trainer.data.streams import Stream

# Format-preserving encryption (RandomIndexShuffle is the Simon cipher): with its default of four
# rounds neighbouring positions are visibly correlated; from 12 on, no test in tests/ tells it from
# random numbers.
_ROUNDS = 16
_RESOLUTION = 2**53  # the values that a float64 in [0, 1) can take evenly


def epoch_size(config: Config, num_examples: int) -> int:
    """How many positions an epoch has: every example `data.repeats` times."""
    return config.data.repeats * num_examples


def epoch_indices(config: Config, num_examples: int, positions: tf.Tensor) -> tf.Tensor:
    """The index of the example at each position of the run, int64 `[n]`, in `[0, num_examples)`.

    Every epoch is a permutation of the examples. With repeated augmentation (Hoffer et al. 2020),
    it is one of a list that has each example `data.repeats` times; the times are close together, so
    that they share a batch, but not side by side, where mixup and CutMix would mix an image with
    itself: the permutation a, b, c, d, repeated twice, is a, b, a, b, c, d, c, d.

    Args:
        positions: int64 `[n]`, ascending; they may cross the ends of epochs.
    """
    repeats = config.data.repeats
    epochs, places = positions // (repeats * num_examples), positions % (repeats * num_examples)
    pair, inside = places // (2 * repeats), places % (2 * repeats)
    # Of an odd number of examples, the last one is alone.
    places = tf.minimum(2 * pair + inside % 2, num_examples - 1)
    if config.data.shuffle == "full":
        return _permuted(config.seed, Stream.ORDER, epochs, places, num_examples)
    return _permuted_in_blocks(config, epochs, places, num_examples)


def _permuted_in_blocks(
    config: Config, epochs: tf.Tensor, places: tf.Tensor, num_examples: int
) -> tf.Tensor:
    """Blocks of neighbours are permuted, then the inside of each: a disk or a network reads what
    lies together. Where blocks begin is another place in each epoch: else the same examples would
    be in the last block, which is shorter, for ever."""
    size = min(config.data.shuffle_block_size, num_examples)
    whole = num_examples // size  # blocks; what is left over is the last one
    block, inside = places // size, places % size
    is_whole = block < whole
    block_sizes = tf.where(is_whole, tf.constant(size, tf.int64), num_examples - whole * size)
    number = epochs * (whole + 1) + block  # of all blocks of all epochs

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
    """Which example stands in for a bad one, at the first attempt, the second, …; at attempt 0, the
    example itself. int64 scalars."""
    key = _key(config.seed, Stream.REPLACEMENT, attempt)
    other = _shuffle(index[None], key[None], tf.constant([num_examples], tf.int64))[0]
    return tf.where(attempt == 0, index, other)


def _fold(seed: int, stream: int, number: tf.Tensor | int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(
        tf.constant([seed, stream], tf.int64), number, alg="philox"
    )


def _key(seed: int, stream: int, number: tf.Tensor | int) -> tf.Tensor:
    """Three int64 numbers that any change of an argument changes wholly.

    Hashed, since the cipher reads the low 8 bits of each number only: with the epoch itself as a
    number of the key, epoch 257 would repeat the order of epoch 1.
    """
    folded = _fold(seed, stream, number)
    return tf.random.stateless_uniform([3], folded, 0, 256, tf.int64, alg="philox")


def _by_number(numbers: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """`function` of each of the numbers, which lie close together: computed once for each."""
    first, last = tf.reduce_min(numbers), tf.reduce_max(numbers)
    values = tf.map_fn(function, tf.range(first, last + 1))
    return tf.gather(values, numbers - first)


def _permuted(
    seed: int, stream: int, numbers: tf.Tensor, places: tf.Tensor, size: tf.Tensor | int
) -> tf.Tensor:
    """What the permutation of `range(size)` with this number has at each place.

    Args:
        numbers: which permutation, int64 `[n]`, close together.
        places: int64 `[n]`, in `[0, size)`.
        size: of the permutations: one for all, or int64 `[n]`.
    """
    sizes = tf.broadcast_to(tf.cast(size, tf.int64), tf.shape(places))
    keys = _by_number(numbers, lambda number: _key(seed, stream, number))
    return _shuffle(places, keys, sizes)


def _shuffle(places: tf.Tensor, keys: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """RandomIndexShuffle, also where it is no permutation: of 2^k + 1 numbers (k even, from 16 on)
    TensorFlow 2.21 gives the last one what it gives the first.

    There, of one number more: should that one come out, it is shuffled again, as the cipher itself
    does with what is out of range. All arguments are int64 `[n]`, but keys are `[n, 3]`.
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
    """A random number in [0, 1) for each position, float32 `[n]`.

    Args:
        positions: int64 `[n]`, below 2**53.
        stream: another number for each use: streams are independent.
    """
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=_key(seed, stream, 0),
        max_index=tf.constant(_RESOLUTION - 1, tf.int64),
        rounds=_ROUNDS,
    )
    # 24 bits: what float32 holds without rounding up to 1.
    return tf.cast(shuffled // 2**29, tf.float32) / 2.0**24

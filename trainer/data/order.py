"""The order of examples and every random choice: pure functions of the seed and the position.

Example `i` of step `s` has the position `p = s * global_batch_size + i` in the run; its epoch is
`p // N`, and its index the place of `p mod N` in that epoch's permutation. So going on after a kill
is seeking, in O(1), and the order does not depend on the number of workers.
"""

import tensorflow as tf

# Format-preserving encryption (RandomIndexShuffle is the Simon cipher): with its default of four
# rounds neighbouring positions are visibly correlated; from 12 on, no test in tests/ tells it from
# random numbers.
_ROUNDS = 16
_ORDER_STREAM = 0
_RESOLUTION = 2**53  # the values that a float64 in [0, 1) can take evenly


def _key(seed: int, stream: int, epoch: tf.Tensor | int) -> tf.Tensor:
    """Three int64 numbers that any change of an argument changes wholly.

    Hashed, since the cipher reads the low 8 bits of each number only: with the epoch itself as a
    number of the key, epoch 257 would repeat the order of epoch 1.
    """
    folded = tf.random.experimental.stateless_fold_in(
        tf.constant([seed, stream], tf.int64), epoch, alg="philox"
    )
    return tf.random.stateless_uniform([3], folded, 0, 256, tf.int64, alg="philox")


def shuffled_indices(positions: tf.Tensor, num_examples: int, seed: int) -> tf.Tensor:
    """The index of the example at each position of the run: each epoch is a permutation.

    Args:
        positions: int64 `[n]`, ascending; a batch may cross the ends of epochs.
        num_examples: N, the size of an epoch.

    Returns:
        int64 `[n]`, in `[0, num_examples)`.
    """
    epochs = positions // num_examples
    first, last = epochs[0], epochs[-1]
    keys = tf.map_fn(lambda epoch: _key(seed, _ORDER_STREAM, epoch), tf.range(first, last + 1))
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % num_examples,
        seed=tf.gather(keys, epochs - first),
        max_index=tf.constant(num_examples - 1, tf.int64),
        rounds=_ROUNDS,
    )


def uniform(positions: tf.Tensor, seed: int, stream: int) -> tf.Tensor:
    """A random number in [0, 1) for each position, float32 `[n]`.

    Args:
        positions: int64 `[n]`, below 2**53.
        stream: another number, above 0, for each use: streams are independent.
    """
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=positions,
        seed=_key(seed, stream, 0),
        max_index=tf.constant(_RESOLUTION - 1, tf.int64),
        rounds=_ROUNDS,
    )
    # 24 bits: what float32 holds without rounding up to 1.
    return tf.cast(shuffled // 2**29, tf.float32) / 2.0**24

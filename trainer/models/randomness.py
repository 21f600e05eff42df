"""Random numbers of the examples of a batch: a pure function of the seed, the step and the place of
an example in the global batch, so that a run goes on exactly, on any number of replicas.

`Dropout` of Keras has a generator with a state, which differs between replicas and which no
checkpoint holds.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

# The streams of the input's random numbers are below this one.
_FIRST_STREAM = 1000


class _Examples(NamedTuple):
    seed: int
    step: tf.Tensor
    first: tf.Tensor | int
    global_batch_size: int


_examples: contextvars.ContextVar[_Examples | None] = contextvars.ContextVar(
    "examples", default=None
)


@contextlib.contextmanager
def examples(
    seed: int, step: tf.Tensor | int, first: tf.Tensor | int, global_batch_size: int
) -> Iterator[None]:
    """Says which examples a model is called with in training, for the layers that draw.

    Args:
        step: int64 scalar; which global batch.
        first: int32 scalar; which row of it is the first of those that the model is called with.
    """
    token = _examples.set(_Examples(seed, tf.cast(step, tf.int64), first, global_batch_size))
    try:
        yield
    finally:
        _examples.reset(token)


def uniform(num_examples: int | tf.Tensor, shape: Sequence[int], stream: int) -> tf.Tensor:
    """Random numbers in [0, 1) for each example that the model is called with: float32
    `[num_examples, *shape]`.

    Those of the whole global batch are drawn, and the rows of these examples taken: much, where
    shapes are those of images and the global batch is large.

    Args:
        stream: another one for each layer: streams are independent.

    Raises:
        RuntimeError: outside of `examples`.
    """
    of = _examples.get()
    if of is None:
        raise RuntimeError(
            "a model with stochastic depth or dropout draws random numbers in training: call it "
            "within trainer.models.randomness.examples(…), as the train step does"
        )
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([of.seed, _FIRST_STREAM + stream], tf.int64), of.step, alg="philox"
    )
    numbers = tf.random.stateless_uniform([of.global_batch_size, *shape], key, alg="philox")
    begin = [of.first, *(0 for _ in shape)]
    return tf.slice(numbers, begin, [num_examples, *shape])

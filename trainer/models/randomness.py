"""Random numbers for the examples of a batch.

They are a pure function of the seed, the step and an example's row in the global batch: so a
resumed run draws the same ones, on any number of replicas. Keras' `Dropout` has a generator with a
state instead, which differs between replicas and is in no checkpoint.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

# Streams below this number are the input's (trainer/data). Layers are numbered from 0: each family
# numbers the layers of its models, and this is added. Other numbers would change runs.
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
def example_context(
    seed: int, step: tf.Tensor | int, first: tf.Tensor | int, global_batch_size: int
) -> Iterator[None]:
    """Sets the examples for which layers draw random numbers while a model is called in training.

    Args:
        step: which global batch; an int64 scalar.
        first: the row of the global batch that the model's first example is; an int32 scalar.
    """
    token = _examples.set(_Examples(seed, tf.cast(step, tf.int64), first, global_batch_size))
    try:
        yield
    finally:
        _examples.reset(token)


def uniform(num_examples: int | tf.Tensor, shape: Sequence[int], stream: int) -> tf.Tensor:
    """Returns random numbers in [0, 1) for each example of the model's call.

    Draws those of the whole global batch and takes these examples' rows. That is much for shapes of
    images and a large global batch.

    Args:
        stream: the layer's own number: streams are independent.

    Returns:
        float32 `[num_examples, *shape]`.

    Raises:
        RuntimeError: outside of `example_context`.
    """
    examples = _examples.get()
    if examples is None:
        raise RuntimeError(
            "a model with stochastic depth or dropout draws random numbers in training: call it "
            "within trainer.models.randomness.example_context(…), as the train step does"
        )
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([examples.seed, _FIRST_STREAM + stream], tf.int64), examples.step, alg="philox"
    )
    numbers = tf.random.stateless_uniform([examples.global_batch_size, *shape], key, alg="philox")
    begin = [examples.first, *(0 for _ in shape)]
    return tf.slice(numbers, begin, [num_examples, *shape])

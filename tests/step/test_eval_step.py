"""The evaluation: every example counts once, and an undecided model is wrong."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data, with_model
from trainer.data.pipeline import eval_dataset, eval_steps
from trainer.step.eval_step import make_eval_loop
from trainer.step.state import TrainState


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("eval_batch_size", [1437, 256, 1000, 7000])
def test_evaluation_counts_every_example_once(small_config, digits, num_replicas, eval_batch_size):
    """Few of the sizes divide 1,437, and 1,000 leaves whole replicas without examples."""
    config = with_data(with_model(small_config, "linear"), eval_batch_size=eval_batch_size)
    strategy = strategy_of(num_replicas)
    with strategy.scope():
        state = TrainState(config, digits.channels)
    totals = make_eval_loop(config, strategy, state.model)(
        iter(
            strategy.distribute_datasets_from_function(
                lambda context: eval_dataset(config, digits, context)
            )
        ),
        tf.constant(eval_steps(config, digits, num_replicas)),
    )
    images, labels = digits.fetch(tf.range(len(digits), dtype=tf.int64))
    logits = state.model((tf.cast(images, tf.float32) / 255 - config.data.mean) / config.data.std)
    log_probabilities = tf.nn.log_softmax(logits).numpy().astype(np.float64)
    order = np.argsort(-log_probabilities, axis=-1)
    right = order == labels.numpy()[:, None]
    assert float(totals.examples) == len(digits) == 1437
    assert float(totals.top1) == right[:, :1].sum()
    assert float(totals.top5) == right[:, :5].sum()
    expected = -log_probabilities[np.arange(len(labels)), labels].sum()
    assert float(totals.loss) == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_at_most_the_examples(small_config, digits):
    """A tiny set in a large batch would be decoded and computed as copies of its last example."""
    config = with_data(small_config, eval_batch_size=100_000)
    for num_replicas, rows in ((1, 1437), (4, 360)):
        context = tf.distribute.InputContext(num_replicas_in_sync=num_replicas)
        spec: Any = eval_dataset(config, digits, context).element_spec
        assert spec[0].shape[0] == rows
        assert eval_steps(config, digits, num_replicas) == 1


@pytest.mark.parametrize("logit", [0.0, float("nan")])
def test_a_model_without_an_opinion_is_never_right(small_config, digits, logit):
    config = with_data(small_config, eval_batch_size=1437)
    model = lambda images, training: tf.fill([images.shape[0], 10], logit)  # noqa: E731
    loop = make_eval_loop(config, strategy_of(1), model)
    dataset = eval_dataset(config, digits, tf.distribute.InputContext())
    totals = loop(iter(dataset), tf.constant(1))
    assert (float(totals.top1), float(totals.top5)) == (0, 0)

"""The evaluation of a run's weights, and of their moving average."""

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from trainer.config import Config
from trainer.data.bad_examples import BadExamples
from trainer.data.pipeline import eval_input, eval_steps, first_bad_in_evaluation
from trainer.data.source import Source
from trainer.failures import bad_examples_reported, out_of_memory_reported
from trainer.step.eval_step import make_eval_loop
from trainer.step.state import TrainState


def make_evaluate(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    source: Source,
    bad_examples: BadExamples,
) -> Callable[[], dict[str, float]]:
    """Returns `evaluate()`, which computes the metrics over all examples of `source`.

    Their names are `top1_accuracy`, `top5_accuracy` and `loss`, with the prefix `ema_` for those of
    the moving average. `bad_examples` is how many were skipped, if any.
    """
    inputs = eval_input(config, strategy, source, bad_examples)
    num_steps = tf.constant(eval_steps(config, source, strategy.num_replicas_in_sync))
    models = {"": state.model}
    if state.ema_model is not None:
        models["ema_"] = state.ema_model
    loops = {prefix: make_eval_loop(config, strategy, model) for prefix, model in models.items()}

    def evaluate() -> dict[str, float]:
        values = {}
        for prefix, loop in loops.items():
            with (
                out_of_memory_reported(
                    f"data.eval_batch_size ({config.data.eval_batch_size})", "lower it"
                ),
                bad_examples_reported(config, partial(first_bad_in_evaluation, config, source)),
            ):
                totals = loop(iter(inputs), num_steps)
                loss, top1, top5, count = (float(total) for total in totals)
            # Skipped bad examples do not count.
            complete = count == len(source)
            if not complete and not (config.data.on_bad_example == "skip" and count > 0):
                raise AssertionError(f"evaluated {count} examples of {len(source)}")
            values[f"{prefix}top1_accuracy"] = top1 / count
            values[f"{prefix}top5_accuracy"] = top5 / count
            values[f"{prefix}loss"] = loss / count
            if not complete:
                values["bad_examples"] = len(source) - count
        return values

    return evaluate

"""Agreement between workers: the host's decisions must be the same on all of them."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.errors import UserError

Agree = Callable[[Sequence[float]], Sequence[float]]


def make_agreement(strategy: tf.distribute.Strategy) -> Agree:
    """Returns a function that gives all workers the mean over them of each worker's numbers.

    Clocks and signals differ between workers. What the host decides from them must not, or the
    workers would wait for each other forever.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda values: values

    @tf.function
    def mean_over_workers(values: tf.Tensor) -> tf.Tensor:
        def replica_mean() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # A copy on the replica's device: a tensor from outside is on none to reduce to.
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(values))

        return strategy.experimental_local_results(strategy.run(replica_mean))[0]

    # float64: sums of integers are exact, so that equal ones stay equal.
    return lambda values: mean_over_workers(tf.constant(values, tf.float64)).numpy().tolist()


def check_same_start(
    agree: Agree, step: int, num_train: int, num_eval: int, num_classes: int
) -> None:
    """Checks that all workers start at the same step, with data of the same size.

    Raises:
        UserError: on all workers, if the numbers of one differ from those of the others, which
            would make them wait for each other forever.
    """
    numbers = (step, num_train, num_eval, num_classes)
    means = agree([float(number) for number in numbers])
    deviations = [(number - mean) ** 2 for number, mean in zip(numbers, means, strict=True)]
    if max(agree(deviations)) > 1e-6:
        raise UserError(
            f"the workers start from different states: this one is at step {step}, with "
            f"{num_train} examples of {num_classes} classes to train on and {num_eval} to "
            f"evaluate; --workdir must be on storage that all workers see, and --data_dir must "
            f"hold the same data for all"
        )

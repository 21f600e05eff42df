"""Agreement between workers: the host's decisions must be the same on all of them."""

import collections
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.splits.split import Split
from trainer.devices.cluster import tf_config_cluster
from trainer.errors import UserError


class Agreement:
    """Gives all workers the same numbers. One process agrees with itself.

    Clocks and signals differ between workers. What the host decides from them must not, or the
    workers would wait for each other forever.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self._cluster = tf_config_cluster() if several else None
        self._mean = _mean_over_workers(strategy) if several else None

    def mean(self, values: Sequence[float]) -> Sequence[float]:
        """Returns the mean over all workers of each worker's numbers."""
        if self._mean is None:
            return values
        # float64: sums of integers are exact, so that equal ones stay equal.
        return self._mean(tf.constant(values, tf.float64)).numpy().tolist()

    def gather(self, numbers: Sequence[int]) -> list[tuple[int, ...]]:
        """Returns the numbers of each worker, by rank. Each must be below 2**50."""
        if self._cluster is None:
            return [tuple(numbers)]
        size = len(self._cluster.addresses)
        own = np.zeros([size, len(numbers)])
        own[self._cluster.rank] = numbers
        # The mean of one worker's number and the other workers' zeros.
        means = np.reshape(self.mean(own.reshape(-1).tolist()), own.shape)
        return [tuple(int(number) for number in np.rint(row * size)) for row in means]


def _mean_over_workers(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    @tf.function
    def mean_over_workers(values: tf.Tensor) -> tf.Tensor:
        def replica_mean() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # A copy on the replica's device: a tensor from outside is on none to reduce to.
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(values))

        return strategy.experimental_local_results(strategy.run(replica_mean))[0]

    return mean_over_workers


def check_same_start(
    agreement: Agreement, step: int, train: Split, evaluation: Split | None
) -> None:
    """Checks that all workers start at the same step, with the same data.

    Raises:
        UserError: on all workers, if those of one differ. They would wait for each other forever,
            or train on a mixture.
    """
    ours: dict[str, int] = {"step": step, "classes": _number(repr(train.class_names))}
    for what, split in (("training data", train), ("evaluation data", evaluation)):
        if split is not None:
            ours[f"examples of the {what}"] = split.num_examples
            ours[f"fingerprint of the {what}"] = _number(split.fingerprint)
    found = agreement.gather(list(ours.values()))
    usual = collections.Counter(found).most_common(1)[0][0]
    odd = [rank for rank, numbers in enumerate(found) if numbers != usual]
    if not odd:
        return
    differences = [
        what if what.startswith(("fingerprint", "classes")) else f"{what} {number}, not {other}"
        for what, number, other in zip(ours, found[odd[0]], usual, strict=True)
        if number != other
    ]
    raise UserError(
        f"worker {odd[0]} starts from something other than the others: "
        f"{'; '.join(differences)}; --workdir must be on storage that all workers see, and "
        f"--data_dir must hold the same data for all"
    )


def _number(text: str) -> int:
    """Returns a hash that float64 holds exactly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

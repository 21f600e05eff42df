"""Optimizers.

They are our own because the train step decides when to reduce, skip and apply (see train_step.py):
Keras' optimizers reduce gradients inside `apply_gradients`, and its loss scaling decides per
replica. An optimizer here updates only the variables of the replica that calls it, with gradients
that are already the same on all replicas.
"""

from collections.abc import Sequence
from typing import ClassVar

import tensorflow as tf

from trainer.config import OptimizerConfig


class Optimizer(tf.Module):
    """An update rule and its slots; built under the strategy's scope, one per model.

    Attributes:
        SLOTS: the number of slots per variable.

    Args:
        config: the `optimizer` section.
        variables: the trainable variables, in the order of their gradients.
        rate_factors: multiplies the learning rate of each variable.
    """

    SLOTS: ClassVar[int]

    def __init__(
        self,
        config: OptimizerConfig,
        variables: Sequence[tf.Variable],
        rate_factors: Sequence[float],
    ):
        super().__init__()
        self.config = config
        self._rate_factors = list(rate_factors)
        # Only kernels decay; only they have more than one axis. Decaying batch norm's scales and
        # biases costs accuracy (Goyal et al. 2017, section 5.3; He et al. 2018, section 3.1).
        self._decay = [config.weight_decay if v.shape.rank > 1 else 0.0 for v in variables]

    @staticmethod
    def _slots(name: str, variables: Sequence[tf.Variable]) -> list[tf.Variable]:
        return [
            tf.Variable(tf.zeros(v.shape, tf.float32), trainable=False, name=f"{name}_{index}")
            for index, v in enumerate(variables)
        ]

    def apply(
        self,
        variables: Sequence[tf.Variable],
        gradients: Sequence[tf.Tensor],
        learning_rate: tf.Tensor,
    ) -> None:
        """Updates this replica's copies of the variables and slots, once.

        Args:
            variables: those that the slots were built for, in that order.
            gradients: float32, of the variables' shapes.
            learning_rate: float32 scalar.
        """
        raise NotImplementedError("abstract: see OPTIMIZERS")


class SGD(Optimizer):
    """Momentum SGD as PyTorch defines it: `m = μm + g`, `w -= η m`, or with Nesterov's
    `w -= η (g + μm)` (Sutskever et al. 2013).

    Weight decay is L2 (`g += λw`), or decoupled (`w -= η λ w`, Loshchilov & Hutter 2019, eq. 9,
    with the learning rate as its schedule multiplier).
    """

    SLOTS = 1

    def __init__(self, config, variables, rate_factors):
        super().__init__(config, variables, rate_factors)
        self.momenta = self._slots("momentum", variables)

    def apply(self, variables, gradients, learning_rate):
        for variable, gradient, momentum, decay, factor in zip(
            variables, gradients, self.momenta, self._decay, self._rate_factors, strict=True
        ):
            rate = _times(learning_rate, factor)
            if decay and self.config.decoupled_weight_decay:
                variable.assign_sub(rate * decay * variable)
            elif decay:
                gradient = gradient + decay * variable  # noqa: PLW2901
            tf.raw_ops.ResourceApplyMomentum(  # the whole update in one kernel
                var=variable.handle,
                accum=momentum.handle,
                lr=rate,
                grad=gradient,
                momentum=self.config.momentum,
                use_nesterov=self.config.nesterov,
            )


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2). `momentum` is
    β1."""

    SLOTS = 2

    def __init__(self, config, variables, rate_factors):
        super().__init__(config, variables, rate_factors)
        self.means = self._slots("mean", variables)
        self.variances = self._slots("variance", variables)
        self.updates = tf.Variable(0.0, trainable=False, name="updates")

    def apply(self, variables, gradients, learning_rate):
        beta1, beta2 = self.config.momentum, self.config.beta2
        self.updates.assign_add(1.0)
        bias1 = 1.0 - tf.pow(beta1, self.updates)
        bias2 = 1.0 - tf.pow(beta2, self.updates)
        for variable, gradient, mean, variance, decay, factor in zip(
            variables,
            gradients,
            self.means,
            self.variances,
            self._decay,
            self._rate_factors,
            strict=True,
        ):
            rate = _times(learning_rate, factor)
            if decay:
                variable.assign_sub(rate * decay * variable)
            mean.assign(beta1 * mean + (1.0 - beta1) * gradient)
            variance.assign(beta2 * variance + (1.0 - beta2) * tf.square(gradient))
            denominator = tf.sqrt(variance / bias2) + self.config.epsilon
            variable.assign_sub(rate * (mean / bias1) / denominator)


def _times(rate: tf.Tensor, factor: float) -> tf.Tensor:
    return rate if factor == 1 else rate * factor


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}


def make_optimizer(
    config: OptimizerConfig,
    variables: Sequence[tf.Variable],
    rate_factors: Sequence[float] | None = None,
) -> Optimizer:
    """Builds the optimizer that the config names, with its slots at zero.

    Args:
        rate_factors: multiplies the learning rate of each variable. Default: 1 for all.
    """
    if rate_factors is None:
        rate_factors = [1.0] * len(variables)
    return OPTIMIZERS[config.name](config, variables, rate_factors)

"""Divergence: a loss or a gradient that is not finite, its report, and the rollback before it."""

from typing import NamedTuple

import numpy as np

from trainer.config import Config
from trainer.data.pipeline import batch_indices
from trainer.data.source import Source
from trainer.errors import DivergedError
from trainer.run.checkpoint import Checkpoints
from trainer.step.state import TrainState
from trainer.step.train_step import TrainMetrics

_SHOWN_EXAMPLES = 8


class Divergence(NamedTuple):
    """The first step that diverged."""

    step: int  # counted from 1, as in the logs
    loss: float
    gradient_norm: float
    learning_rate: float
    loss_scale: float
    layer: str  # the first in the backward pass without a finite gradient; "" if none
    examples: list[int]  # indices into the training split, of the global batch

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.examples[:_SHOWN_EXAMPLES]))
        if len(self.examples) > _SHOWN_EXAMPLES:
            shown += f" and {len(self.examples) - _SHOWN_EXAMPLES} more in metrics.jsonl"
        return (
            f"step {self.step}: the loss is {self.loss:.6g} and the gradient's norm "
            f"{self.gradient_norm:.6g}, at learning rate {self.learning_rate:.6g} and loss scale "
            f"{self.loss_scale:.6g}; first layer in the backward pass without a finite gradient: "
            f"{self.layer or 'none'}; the batch's examples: {shown}"
        )


def find(
    config: Config, state: TrainState, source: Source, end: int, metrics: TrainMetrics
) -> Divergence | None:
    """Returns the first divergence in a loop of steps that ended after step `end`, or None.

    A skipped step of float16 does not count while its loss scale can still fall: that is how the
    scale finds its level. A loss that is not finite counts at any scale, since it is not scaled.
    """
    first = end - len(metrics.loss)
    steps = first + np.arange(len(metrics.loss))
    known = np.isin(steps, state.left_out.numpy())  # diverged before, and left out since
    final = ~np.isfinite(metrics.loss) | (metrics.loss_scale <= 1)
    bad = np.flatnonzero((metrics.applied == 0) & final & ~known)
    if not bad.size:
        return None
    row = int(bad[0])
    variable = int(metrics.bad_variable[row])
    names = [v.name.removesuffix(":0") for v in state.model.trainable_variables]
    return Divergence(
        step=int(steps[row]) + 1,
        loss=float(metrics.loss[row]),
        gradient_norm=float(metrics.gradient_norm[row]),
        learning_rate=float(metrics.learning_rate[row]),
        loss_scale=float(metrics.loss_scale[row]),
        layer=names[variable] if variable >= 0 else "",
        examples=batch_indices(config, source, int(steps[row])).tolist(),
    )


def stop_or_roll_back(
    config: Config, state: TrainState, checkpoints: Checkpoints, found: Divergence
) -> int:
    """Does what `on_divergence` says, and returns the step from which the run continues.

    Raises:
        DivergedError: if the run stops instead.
    """
    count = int(state.rollbacks.numpy())
    if config.on_divergence == "stop":
        raise DivergedError(
            f"{found}; the last checkpoint is kept; lower optimizer.learning_rate or set "
            f"optimizer.clip_norm in a new --workdir, or continue with "
            f"--set on_divergence=rollback"
        )
    if count >= config.max_rollbacks:
        raise DivergedError(
            f"{found}; the last checkpoint is kept; rolled back {count} times already "
            f"(max_rollbacks), to {state.rate_factor.numpy():.3g} of the learning rate"
        )
    return _roll_back(config, state, checkpoints, found)


def _roll_back(
    config: Config, state: TrainState, checkpoints: Checkpoints, divergence: Divergence
) -> int:
    """Restores the last checkpoint, leaves the batch out and lowers the learning rate.

    Nothing is saved yet: killed before the next checkpoint, the run diverges and rolls back again.
    """
    count = int(state.rollbacks.numpy())
    factor = float(state.rate_factor.numpy()) * config.rollback_factor
    left_out = state.left_out.numpy()
    left_out[count] = divergence.step - 1
    step = checkpoints.restore() or 0
    state.rollbacks.assign(count + 1)
    state.rate_factor.assign(factor)
    state.left_out.assign(left_out)
    return step

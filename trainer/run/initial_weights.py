"""The weights that a run starts from: `model.weights`."""

from collections.abc import Sequence

import numpy as np

from trainer.config import Config
from trainer.errors import UserError
from trainer.models.weights.load import load_weights
from trainer.run.agreement import Agreement
from trainer.step.state import TrainState


def load_initial_weights(
    config: Config,
    class_names: Sequence[str],
    state: TrainState,
    agreement: Agreement,
    is_new: bool,
) -> str:
    """Loads `model.weights` into a new run's model and its average, and checks that all workers
    have the same.

    Returns:
        A line for the user, starting with a line break; "" if nothing was loaded.

    Raises:
        UserError: on all workers, if one cannot load the weights or has other ones.
    """
    if config.model.weights is None:
        return ""
    loaded, failure = "", None
    try:
        loaded = f"\n{load_weights(config, state.model, class_names)}" if is_new else ""
    except UserError as error:
        failure = error
    total = sum(float(np.abs(v.numpy()).sum(dtype=np.float64)) for v in state.model.variables)
    failed, mean = agreement.mean([float(failure is not None), total])
    if failure is not None:
        raise failure
    if failed or max(agreement.mean([abs(total - mean)])) > 1e-9 * mean:
        raise UserError(
            f"model.weights ({config.model.weights}): another worker cannot load it, or has "
            f"another file of this name; it must be the same for all"
        )
    if state.ema_model is not None and is_new:
        for average, value in zip(state.ema_model.variables, state.model.variables, strict=True):
            average.assign(value)
    return loaded

"""Checks of `model.weights` that need no TensorFlow, so that a wrong path is answered at once."""

import os
from pathlib import Path

from trainer import config as config_lib
from trainer.config import Config
from trainer.config.text import spell
from trainer.errors import UserError
from trainer.models.weights import tensor_file
from trainer.models.weights.known_models import KNOWN_MODELS
from trainer.models.weights.trained import Trained, checkpoint_places, find_trained
from trainer.registry import MODELS

EXPECTED = f"weights ({', '.join(tensor_file.SUFFIXES)}), a run's folder or a checkpoint"


def path_of(text: str) -> Path:
    """Returns the path that `model.weights` names."""
    return Path(os.path.expanduser(text))


def check_weights(config: Config) -> None:
    """Checks that the weights are there and may be the model's, as far as names tell.

    `load_weights` checks the rest. A run that resumes has no need of its file.

    Raises:
        UserError: if the path does not exist or is of another kind, or if the weights are another
            model's: by the config of the run, or by the names of the tensors.
    """
    if config.model.weights is None:
        return
    path = path_of(config.model.weights)
    try:
        if path.suffix.lower() not in tensor_file.SUFFIXES:
            checkpoint_places(path, EXPECTED)
        elif path.suffix.lower() in tensor_file.PICKLES:
            tensor_file.check_readable(path)
        trained = find_trained(path)
        if trained is not None:
            check_same_function(config, trained)
        elif path.suffix.lower() == ".safetensors":
            _check_tensors(config.model.name, path)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None


def check_same_function(config: Config, trained: Trained) -> None:
    """Refuses the weights of a model that fit ours in shape but compute something else there."""
    values = config_lib.to_dict(config)
    for field in ("model.name", "model.blur_pool", "model.batch_norm_epsilon"):
        if field in trained.values and trained.values[field] != values[field]:
            was, ours = spell(trained.values[field]), spell(values[field])
            raise UserError(
                f"{trained.origin}: was trained with {field}={was}, and here it is {ours}: --set "
                f"{field}={was}"
            )


def _check_tensors(model_name: str, path: Path) -> None:
    """Refuses a file whose tensors are exactly those of other models, and not of this one."""
    digest = tensor_file.hash_of_model(tensor_file.read_shapes(path))
    holders = {model: library for (model, library), own in KNOWN_MODELS.items() if own == digest}
    if not holders or model_name in holders or model_name not in MODELS:
        return
    models = " or ".join(holders)
    advice = models if len(holders) == 1 else "one of them"
    raise UserError(
        f"{path}: holds the tensors of {models} by {next(iter(holders.values()))}'s names, and "
        f"model.name is {model_name}: --set model.name={advice}"
    )

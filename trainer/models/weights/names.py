"""The names that other libraries have for a model's variables, and their layout there.

A family's `NAMES` maps each library to a function `(model, path) -> name`: from a layer's path in
our model, such as `stage3_block1/conv2/norm`, to its name there, such as `layer3.0.bn2`. The first
library is the one whose names `trainer.export` writes. A family without `NAMES` has its paths, with
dots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.models.build import family_of

_KINDS = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class NamedVariable(NamedTuple):
    """A variable, its place in the model, and its layout in PyTorch."""

    variable: tf.Variable
    layer: str  # its path, such as stage3_block1/conv2/conv
    kind: str  # such as kernel

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The variable's shape in PyTorch's layout."""
        shape = self.variable.shape
        return tuple(int(shape[axis]) for axis in self._axes)

    @property
    def _axes(self) -> tuple[int, ...]:
        if self.kind == "depthwise_kernel":  # [height, width, channels, 1]
            return (2, 3, 0, 1)
        if self.kind == "kernel" and self.variable.shape.rank == 4:  # [height, width, in, out]
            return (3, 2, 0, 1)
        return tuple(reversed(range(self.variable.shape.rank)))  # a dense kernel: [in, out]

    def to_torch(self) -> np.ndarray:
        """Returns the numbers in PyTorch's layout."""
        return np.ascontiguousarray(self.variable.numpy().transpose(self._axes))

    def assign_from_torch(self, values: np.ndarray) -> None:
        """Assigns numbers of the shape `torch_shape`."""
        self.variable.assign(values.astype(np.float32).transpose(np.argsort(self._axes)))


def _path_with_dots(model: tf_keras.Model, path: str) -> str:
    del model
    return path.replace("/", ".")


def libraries(model_name: str) -> dict[str, Callable[[Any, str], str]]:
    """Returns the naming function of each library: the `NAMES` of the model's family."""
    return getattr(family_of(model_name), "NAMES", {"trainer": _path_with_dots})


def named_variables(
    model: tf_keras.Model, name_of: Callable[[Any, str], str]
) -> dict[str, NamedVariable]:
    """Returns a model's variables by a library's names, such as `layer3.0.bn2.running_mean`."""
    found = {}
    for variable in model.variables:
        layer, _, kind = variable.name.partition(":")[0].rpartition("/")
        name = f"{name_of(model, layer)}.{_KINDS.get(kind, kind)}"
        found[name] = NamedVariable(variable, layer, kind)
    assert len(found) == len(model.variables), "two variables have one name"
    return found


def torch_tensors(model_name: str, model: tf_keras.Model) -> dict[str, np.ndarray]:
    """Returns the variables in PyTorch's layout, by the names of the family's first library."""
    library = next(iter(libraries(model_name).values()))
    return {name: one.to_torch() for name, one in named_variables(model, library).items()}

"""The best evaluation of a run so far."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple, Self


class Best(NamedTuple):
    """An evaluation, and whose it is. The one in `checkpoints/best` is the run's best."""

    accuracy: float = -1.0  # top-1
    loss: float = math.inf
    step: int = 0
    weights: str = "raw"  # or average: the moving average's

    @classmethod
    def of(cls, values: Mapping[str, float], step: int) -> Self:
        """Returns the better of the raw weights' and the average's evaluation."""
        found = cls(values["top1_accuracy"], values["loss"], step)
        if "ema_loss" in values:
            average = cls(values["ema_top1_accuracy"], values["ema_loss"], step, "average")
            found = average if average.beats(found) else found
        return found

    def beats(self, other: "Best") -> bool:
        """Whether the accuracy is higher, or equal at a lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    def to_json(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

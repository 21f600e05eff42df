"""How a run ended."""

import math
import shlex
from pathlib import Path
from typing import NamedTuple


class Summary(NamedTuple):
    """How a run ended. NaN: not evaluated, or not measured."""

    best_accuracy: float
    last_accuracy: float
    images_per_second: float  # of this process's training, without the first loop's tracing
    train_seconds: float  # of this process's train loops, without evaluation and checkpoints

    def text(self, folder: Path) -> str:
        """Returns the summary in words, and where to read more."""
        result = "not evaluated"
        if math.isfinite(self.best_accuracy):
            result = f"best accuracy {self.best_accuracy:.4f}, last {self.last_accuracy:.4f}"
        # NaN if all steps were done before, or in the one loop that includes tracing.
        measured = math.isfinite(self.images_per_second)
        rate = f" at {self.images_per_second:.0f} images/s" if measured else ""
        return (
            f"{result}; trained {self.train_seconds:.1f} s{rate}\n"
            f"logs and checkpoints: {folder}\n"
            f"tensorboard --logdir {shlex.quote(str(folder))}"
        )

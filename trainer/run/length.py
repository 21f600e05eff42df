"""How long a run is, and the steps at which it does something else."""

import dataclasses
import math
from typing import NamedTuple

from trainer.config import Config
from trainer.data.order import epoch_size


class Length(NamedTuple):
    """The length of a run in steps, and its turning points.

    Attributes:
        steps_per_epoch: how many global batches hold the training examples once (`data.repeats`
            times, if set); not always an integer, since batches run across epoch ends.
    """

    config: Config
    steps_per_epoch: float
    total_steps: int

    @property
    def evaluation_interval(self) -> float:
        """The steps from one evaluation to the next: `eval_every_epochs`, and at least one step."""
        return max(self.config.eval_every_epochs * self.steps_per_epoch, 1.0)

    def next_evaluation(self, step: int) -> int:
        """Returns the first step after `step` that ends an evaluation interval, or the last."""
        interval = self.evaluation_interval
        count = math.floor(step / interval) + 1
        while round(count * interval) <= step:
            count += 1
        return min(round(count * interval), self.total_steps)

    def next_image_size(self, step: int) -> float:
        """Returns the step from which on images have another size; infinity if none follows."""
        ends = (self._end(epoch) for epoch in self.config.data.train_size_epochs)
        return next((end for end in ends if end > step), math.inf)

    def config_at(self, step: int) -> Config:
        """Returns the config with the image size of `step`."""
        data = self.config.data
        for size, epoch in zip(data.train_sizes, data.train_size_epochs, strict=True):
            if step < self._end(epoch):
                return dataclasses.replace(
                    self.config, data=dataclasses.replace(data, image_size=size)
                )
        return self.config

    def _end(self, epoch: float) -> int:
        return round(epoch * self.steps_per_epoch)


def run_length(config: Config, num_examples: int) -> Length:
    """Returns the length of a run on this many training examples; at least one step."""
    steps_per_epoch = epoch_size(config, num_examples) / config.data.global_batch_size
    return Length(config, steps_per_epoch, max(1, round(config.num_epochs * steps_per_epoch)))

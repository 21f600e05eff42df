"""The data of a run: both splits, opened and checked."""

from collections.abc import MutableMapping
from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config, with_num_classes
from trainer.data.source import OpenSplit, open_split
from trainer.data.splits.split import Split
from trainer.devices.checks import check_placement


class RunData(NamedTuple):
    """The splits of a run.

    Attributes:
        evaluation: None with `data.eval_split=none`.
    """

    train: OpenSplit
    evaluation: OpenSplit | None

    @property
    def splits(self) -> tuple[Split, Split | None]:
        """What the examples are, without them."""
        return self.train.split, self.evaluation.split if self.evaluation else None


def open_data(
    config: Config,
    strategy: tf.distribute.Strategy,
    data_dir: str,
    found: MutableMapping[str, Split] | None = None,
) -> tuple[RunData, Config]:
    """Opens the splits, and checks that the devices can read them.

    Args:
        found: what `find_split` has found already, by the split's name. Emptied, so that arrays in
            it are in memory once.

    Returns:
        The data, and the config with the number of their classes.

    Raises:
        UserError: if the data are missing, or differ from the config or from each other.
    """
    found = {} if found is None else found
    name = config.data.train_split
    train = open_split(config, name, data_dir, found.pop(name, None))
    config = with_num_classes(config, train.split.class_names)
    evaluation, name = None, config.data.eval_split
    if name is not None:
        evaluation = open_split(config, name, data_dir, found.pop(name, None))
    for opened in filter(None, (train, evaluation)):
        check_placement(strategy, config, opened.source.in_graph)
    return RunData(train, evaluation), config

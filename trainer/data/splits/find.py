"""Finds the splits of a data set before TensorFlow is imported, so that a mistake shows at once."""

from collections.abc import Callable
from importlib import import_module

from trainer.config import Config, with_num_classes
from trainer.data.splits.split import Split, check_fit
from trainer.registry import SOURCES


def find_split(config: Config, split: str, data_dir: str) -> Split | None:
    """Finds a split of the data set `data.name` and checks it against the config.

    Returns:
        The split; None if only opening it tells: it is a module of the user's own, or the digits,
        which are prepared then.

    Raises:
        UserError: if the data are missing or differ from the config.
    """
    if config.data.name not in SOURCES:
        return None
    # The module of the same name in this folder. Imported now: TFDS alone takes half a second.
    name = SOURCES[config.data.name].rpartition(".")[2]
    find: Callable[[Config, str, str], Split | None]
    find = import_module(f"trainer.data.splits.{name}").find
    found = find(config, split, data_dir)
    if found is not None:
        check_fit(config, found.class_names, found.num_examples, found.channels, found.image_shape)
    return found


def find_splits(config: Config, data_dir: str) -> dict[str, Split]:
    """Finds both splits of a run, by name; without those that only opening tells.

    Raises:
        UserError: as `find_split`.
    """
    found = {}
    for name in (config.data.train_split, config.data.eval_split):
        split = None if name is None else find_split(config, name, data_dir)
        if name is not None and split is not None:
            found[name] = split
            config = with_num_classes(config, split.class_names)
    return found

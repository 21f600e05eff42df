"""Random images, as many as ImageNet has, to measure everything but the input."""

from trainer.config import Config
from trainer.data.splits.split import Split, fingerprint, numbered_classes

_EXAMPLES = {"train": 1_281_167}  # ImageNet's; any other split has 50,000


def find(config: Config, split: str, data_dir: str) -> Split:
    """Describes a split, which is a function of the config alone."""
    del data_dir
    data = config.data
    return Split(
        name=split,
        place="",
        fingerprint=fingerprint(["synthetic"]),
        num_examples=_EXAMPLES.get(split, 50_000),
        class_names=numbered_classes(config, "synthetic images have no classes"),
        class_counts=None,
        channels=data.channels,
        image_shape=(data.image_size, data.image_size, data.channels),
        content=None,
    )

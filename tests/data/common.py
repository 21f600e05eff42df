"""What the tests of sources share."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import Config
from trainer.data.source import open_source
from trainer.errors import UserError

ALONE = tf.distribute.InputContext()


def everything(source) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a source."""
    images, labels = source.fetch(tf.range(len(source), dtype=tf.int64))
    return images.numpy(), labels.numpy()


def refusal(config: Config, split: str, data_dir: Path) -> str:
    """The error with which a split is not opened."""
    with pytest.raises(UserError) as caught:
        open_source(config, split, str(data_dir))
    return str(caught.value)

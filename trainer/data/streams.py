"""The streams of random numbers that the input draws from, one for each use.

The numbers stay as they are: another number gives other random choices, so that a run would not
resume as it began. Streams from 1000 on are the model's (`trainer/models/randomness.py`).
"""

import enum

DRAWS_PER_LAYER = 3  # of an augmentation policy: operation, strength, direction


@enum.unique
class Stream(enum.IntEnum):
    """A stream of random numbers, independent of all others."""

    ORDER = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP = 3
    RANDOM_RESIZED_CROP = 4  # below 8: `decode_train` packs it into a seed
    AUGMENT = 10  # the first of those of `augment_streams`, which end before 60
    BRIGHTNESS = 60
    CONTRAST = 61
    SATURATION = 62
    ERASE = 63
    ERASED_AREA = 64
    ERASED_ASPECT = 65
    ERASED_TOP = 66
    ERASED_LEFT = 67
    MIXED_SHARE = 70
    MIXUP_OR_CUTMIX = 71
    CUTMIX_CENTER_Y = 72
    CUTMIX_CENTER_X = 73
    BLOCK_ORDER = 100
    INSIDE_BLOCK = 101
    BLOCK_SHIFT = 102
    REPLACEMENT = 103


def augment_streams(num_layers: int) -> range:
    """Returns the streams of an augmentation policy: `DRAWS_PER_LAYER` for each layer in turn."""
    return range(Stream.AUGMENT, Stream.AUGMENT + num_layers * DRAWS_PER_LAYER)

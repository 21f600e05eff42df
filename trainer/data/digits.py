"""scikit-learn's handwritten digits as a TFDS data set: real images without a download."""

import numpy as np
import tensorflow_datasets as tfds

TEST_EXAMPLES = 360


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 digits of 8x8 pixels written by 43 people (Alpaydin & Kaynak 1998, UCI "Optical
    Recognition of Handwritten Digits", its test set, as scikit-learn ships it).

    Splits, fixed and stratified by class: `train` 1,437, `test` 360.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._examples("train"), "test": self._examples("test")}

    # TFDS requires this method; the splits above have generators instead.
    _generate_examples = None  # pyright: ignore[reportAssignmentType]

    def _examples(self, split: str):
        from sklearn import datasets

        bunch = datasets.load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # ink is 0 to 16
        is_test = test_mask(bunch.target)
        for index in np.flatnonzero(is_test == (split == "test")):
            yield int(index), {"image": images[index], "label": int(bunch.target[index])}


def test_mask(labels: np.ndarray) -> np.ndarray:
    """Returns which examples are for the test, bool `[n]`: 20.03 % of each class, always the same.

    Within each class, examples are ordered by a multiplicative hash of their index. A library's
    random split could change with its release.
    """
    index = np.arange(len(labels), dtype=np.uint64)
    hashed = (index * np.uint64(2654435761)) % np.uint64(2**32)  # Knuth, TAOCP 3, section 6.4
    counts = np.bincount(labels)
    shares = counts * TEST_EXAMPLES / len(labels)
    take = np.floor(shares).astype(int)
    largest_remainders = np.argsort(take - shares, kind="stable")
    take[largest_remainders[: TEST_EXAMPLES - take.sum()]] += 1
    mask = np.zeros(len(labels), bool)
    for label, number in enumerate(take):
        members = np.flatnonzero(labels == label)
        mask[members[np.argsort(hashed[members], kind="stable")][:number]] = True
    return mask

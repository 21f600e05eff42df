"""The order, the pipeline, the sources and the transforms: pure functions of seed and position."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import with_data
from trainer.config import Config, DataConfig
from trainer.data import SOURCES, digits, tfds_source, transform
from trainer.data.order import shuffled_indices, uniform
from trainer.data.pipeline import train_dataset
from trainer.data.source import open_source
from trainer.errors import UserError

# --- order ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(num_examples=st.integers(1, 300), epoch=st.integers(0, 10_000), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(num_examples, epoch, seed):
    positions = epoch * num_examples + tf.range(num_examples, dtype=tf.int64)
    indices = shuffled_indices(positions, num_examples, seed).numpy()
    assert sorted(indices) == list(range(num_examples))


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 10_000), length=st.integers(1, 200), cut=st.integers(0, 200))
def test_a_batch_across_epochs_is_its_parts(start, length, cut):
    positions = start + tf.range(length, dtype=tf.int64)
    whole = shuffled_indices(positions, 37, seed=3).numpy()
    cut = min(cut, length)
    parts = [p for p in (positions[:cut], positions[cut:]) if len(p)]
    np.testing.assert_array_equal(
        whole, np.concatenate([shuffled_indices(p, 37, seed=3) for p in parts])
    )


def _chi_square(values: np.ndarray, bins: int) -> float:
    """Of the hypothesis that values in [0, 1) are uniform, in standard deviations."""
    counts, _ = np.histogram(values, bins, (0, 1))
    expected = len(values) / bins
    return (((counts - expected) ** 2 / expected).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1))


def test_epochs_and_seeds_have_independent_orders():
    """In particular epochs 256 apart, which RandomIndexShuffle alone would give one order."""
    num_examples = 1437
    first = tf.range(num_examples, dtype=tf.int64)
    orders = {
        (seed, epoch): shuffled_indices(epoch * num_examples + first, num_examples, seed).numpy()
        for seed, epoch in [(0, 0), (0, 1), (0, 2), (0, 256), (0, 257), (1, 0), (256, 0), (257, 1)]
    }
    for key, order in orders.items():
        for other_key, other in orders.items():
            if key != other_key:
                # Two random permutations agree in one place, Poisson: over 10 has chance 1e-8.
                assert np.sum(order == other) <= 10, (key, other_key)
    places = np.array(
        [
            shuffled_indices(tf.constant([epoch * num_examples], tf.int64), num_examples, 0)[0]
            for epoch in range(1000)
        ]
    )
    assert abs(_chi_square(places / num_examples, 20)) < 5  # the first example of each epoch
    neighbours = orders[0, 0]
    assert abs(_chi_square((np.diff(neighbours) % num_examples) / num_examples, 20)) < 5


def test_uniform_is_uniform_and_independent_between_positions_streams_and_seeds():
    positions = tf.range(100_000, dtype=tf.int64)
    first = uniform(positions, 0, 1).numpy()
    assert first.min() >= 0
    assert first.max() < 1
    others = [uniform(positions, 0, 2).numpy(), uniform(positions, 1, 1).numpy(), np.roll(first, 1)]
    others += [uniform(positions, 256, 1).numpy(), uniform(positions, 0, 257).numpy()]
    assert abs(_chi_square(first, 100)) < 5
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(len(first))
        assert abs(_chi_square((first + other) % 1, 100)) < 5


# --- pipeline ---------------------------------------------------------------------------------


def _context(worker: int, num_workers: int, num_replicas: int) -> tf.distribute.InputContext:
    return tf.distribute.InputContext(num_workers, worker, num_replicas)


def _steps(config, source, start, stop, num_workers=1, replicas_per_worker=1):
    """The global batches of the steps, put together from all workers' and replicas' parts."""
    workers = [
        list(
            train_dataset(
                config,
                source,
                start,
                _context(worker, num_workers, num_workers * replicas_per_worker),
            )
            .take((stop - start) * replicas_per_worker)
            .as_numpy_iterator()
        )
        for worker in range(num_workers)
    ]
    batches = []
    for step in range(stop - start):
        turns = slice(step * replicas_per_worker, (step + 1) * replicas_per_worker)
        parts = [part for elements in workers for part in elements[turns]]
        batches.append(tuple(np.concatenate(column) for column in zip(*parts, strict=True)))
    return batches


@pytest.mark.parametrize(
    ("num_workers", "replicas_per_worker"), [(1, 2), (2, 1), (3, 1), (4, 1), (2, 3)]
)
def test_the_global_batch_does_not_depend_on_who_reads_it(
    digits_config, digits, num_workers, replicas_per_worker
):
    config = with_data(digits_config, global_batch_size=132)
    alone = _steps(config, digits, 9, 13)  # 1,437 = 10.9 batches: across an epoch's end
    shared = _steps(config, digits, 9, 13, num_workers, replicas_per_worker)
    for (images, labels), (other_images, other_labels) in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_any_step_can_be_sought(digits_config, digits):
    whole = _steps(digits_config, digits, 0, 30)
    for start in (1, 17, 29):
        for a, b in zip(_steps(digits_config, digits, start, 30), whole[start:], strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])


def test_an_epoch_has_every_example_once(digits_config, digits):
    # 3 x 479 = 1,437
    config = with_data(digits_config, global_batch_size=479, crop="none", pad=0, image_size=8)
    for epoch in range(2):
        batches = _steps(config, digits, 3 * epoch, 3 * epoch + 3)
        seen = np.concatenate([images for images, _ in batches])
        every = digits.fetch(tf.range(len(digits), dtype=tf.int64))[0].numpy()
        assert sorted(map(bytes, seen)) == sorted(map(bytes, every))


# --- sources ----------------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all(data_dir, digits_config):
    from sklearn import datasets

    bunch = datasets.load_digits()
    mask = digits.test_mask(bunch.target)
    assert (mask.sum(), (~mask).sum()) == (360, 1437)
    shares = np.bincount(bunch.target[mask]) / np.bincount(bunch.target)
    assert np.abs(shares - 360 / 1797).max() < 0.004  # stratified: within one example of 180
    chosen = hashlib.sha256(np.flatnonzero(mask).astype("<i4").tobytes()).hexdigest()
    assert chosen.startswith("2ec12679e9bdc2b2")  # another split is another benchmark
    for split, rows in (("train", ~mask), ("test", mask)):
        source = open_source(digits_config, split, data_dir)
        images, labels = source.fetch(tf.range(len(source), dtype=tf.int64))
        expected = {
            (tuple(np.rint(image).astype(int).ravel()), label)
            for image, label in zip(bunch.images[rows], bunch.target[rows], strict=True)
        }
        ink = np.rint(images.numpy()[..., 0] * (16 / 255)).astype(int)
        actual = {
            (tuple(image.ravel()), label) for image, label in zip(ink, labels.numpy(), strict=True)
        }
        assert actual == expected
        assert source.class_names == tuple("0123456789")


def test_normalisation_constants_are_those_of_the_training_digits(digits_config, digits):
    images = digits.fetch(tf.range(len(digits), dtype=tf.int64))[0].numpy() / 255
    assert digits_config.data.mean[0] == pytest.approx(images.mean(), abs=1e-4)
    assert digits_config.data.std[0] == pytest.approx(images.std(), abs=1e-4)


def test_reading_from_disk_is_reading_from_memory(data_dir, digits_config, digits, monkeypatch):
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_BYTES", 0)
    config = with_data(digits_config, crop="none", pad=0, eval_crop_ratio=1.0)
    from_disk = open_source(config, "train", data_dir)
    assert isinstance(from_disk, tfds_source.RandomAccessSource)
    assert from_disk.image_shape is None
    for a, b in zip(_steps(config, from_disk, 21, 24), _steps(config, digits, 21, 24), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


class _Squares:
    """A second source in one file: squares of two sizes."""

    class_names = ("small", "large")
    image_shape = (8, 8, 1)
    channels = 1

    def __len__(self):
        return 10

    def fetch(self, indices):
        large = indices % 2 == 1
        size = tf.where(large, 6, 2)[:, None]
        on = tf.cast(tf.range(8)[None] < size, tf.uint8) * 255
        return (on[:, :, None] * (on[:, None] // 255))[..., None], tf.cast(large, tf.int32)


def test_a_second_source_is_one_file_and_one_line(digits_config, monkeypatch):
    import sys

    module = type(sys)("squares")
    module.open_source = lambda config, split, data_dir: _Squares()
    monkeypatch.setitem(sys.modules, "squares", module)
    monkeypatch.setitem(SOURCES, "squares", "squares")
    config = with_data(
        digits_config, name="squares", crop="none", pad=0, global_batch_size=5, image_size=8
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    source = open_source(config, "train", "")
    for images, labels in _steps(config, source, 0, 4):
        np.testing.assert_array_equal((images > 0).sum((1, 2, 3)), np.where(labels, 36, 4))


def test_what_is_wrong_with_the_data_is_said(data_dir, digits_config, tmp_path):
    def refuses(match, split="train", folder=data_dir, **changes):
        with pytest.raises(UserError, match=match):
            open_source(with_data(digits_config, **changes), split, folder)

    refuses(r"'cifar10': not prepared in .*; prepare it once.*: tfds build cifar10", name="cifar10")
    refuses(r"'no_such_thing': TFDS does not know it", name="tfds", path="no_such_thing")
    refuses(r"split 'validation'.*it has train, test", split="validation")
    refuses(r"3 values, .* 1 channels", mean=(0.5,) * 3, std=(0.5,) * 3)
    refuses(r"'random_resized', which needs encoded images", crop="random_resized", pad=0)
    (tmp_path / "file").write_text("")
    refuses(r"--data_dir=.*cannot be written", folder=str(tmp_path / "file" / "below"))
    config = dataclasses.replace(
        digits_config, model=dataclasses.replace(digits_config.model, num_classes=7)
    )
    with pytest.raises(UserError, match=r"has 10 classes: --set model.num_classes=10"):
        open_source(config, "train", data_dir)


# --- transforms -------------------------------------------------------------------------------


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pad_and_crop_takes_every_place_and_nothing_else():
    config = Config(data=DataConfig(crop="pad", pad=2, image_size=8))
    image = _images(8, 8, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    batch = tf.constant(np.repeat(image[None], 2000, 0))
    cropped = transform.train_images(batch, tf.range(2000, dtype=tf.int64), config, 1).numpy()
    counts = np.zeros((5, 5))
    for crop in cropped:
        counts[places[crop.tobytes()]] += 1
    assert ((counts - 80) ** 2 / 80).sum() < 24 + 5 * np.sqrt(48)  # uniform over the 25 places


def test_flip_mirrors_half_of_the_images():
    config = Config(data=DataConfig(flip=True, image_size=8))
    images = _images(2000, 8, 8, 3)
    flipped = transform.train_images(
        tf.constant(images), tf.range(2000, dtype=tf.int64), config, 3
    ).numpy()
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored ^ (flipped == images).all((1, 2, 3))).all()
    assert abs(mirrored.sum() - 1000) < 5 * np.sqrt(500)


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """scikit-learn's two photos, 640x427, as JPEG; and one of them as PNG."""
    from sklearn.datasets import load_sample_images

    files = []
    for image, kind in zip(
        [*load_sample_images().images] * 2, ("JPEG", "JPEG", "PNG"), strict=False
    ):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, quality=95)
        files.append(buffer.getvalue())
    return files


def test_evaluation_crops_the_centre_as_pillow_does(photos):
    config = Config(data=DataConfig(image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3))
    images = transform.eval_images(tf.constant(photos), config, 3).numpy()
    for file, image in zip(photos, images, strict=True):
        side = round(427 * 0.875)
        left, top = (640 - side) // 2, (427 - side) // 2
        crop = Image.open(io.BytesIO(file)).crop((left, top, left + side, top + side))
        expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR), float)
        # JPEG decoders differ by a few units where colour is upsampled.
        assert np.abs(image - expected).mean() < 1.5
        assert np.abs(image - expected).max() < 30


def test_random_resized_crops_are_crops_within_the_ranges(photos, monkeypatch):
    config = Config(data=DataConfig(crop="random_resized", image_size=32))
    windows = []
    original = transform._decode_crop
    monkeypatch.setattr(
        transform, "_decode_crop", lambda *a: windows.append(a[1].numpy()) or original(*a)
    )
    for position in range(200):
        image = transform._random_resized_crop(
            tf.constant(photos[position % 3]), tf.constant(position, tf.int64), config, 3
        )
        assert image.shape == (32, 32, 3)
    _, _, heights, widths = np.array(windows).T
    areas, ratios = heights * widths / (640 * 427), widths / heights
    assert areas.min() > 0.07
    assert areas.max() <= 1
    assert areas.max() > 0.8
    assert areas.min() < 0.2
    assert (ratios > 0.73).all()
    assert (ratios < 1.36).all()
    assert len({tuple(w) for w in windows}) > 190


def test_augmented_photos_are_a_function_of_the_position(photos):
    config = Config(data=DataConfig(crop="random_resized", flip=True, image_size=32))
    files = tf.constant(photos * 2)
    positions = tf.constant([5, 6, 7, 8, 9, 10], tf.int64)
    batch = transform.train_images(files, positions, config, 3).numpy()
    reverse = transform.train_images(files[::-1], positions[::-1], config, 3).numpy()
    np.testing.assert_array_equal(batch, reverse[::-1])
    assert (batch[0] != batch[3]).any()  # the same photo elsewhere


def test_metadata_is_ready_for_json(digits_config, digits):
    from trainer.checkpoint import run_metadata

    metadata = json.loads(json.dumps(run_metadata(digits_config, digits)))
    assert metadata["class_names"] == list("0123456789")
    assert metadata["mean"] == list(digits_config.data.mean)
    assert metadata["config"]["optimizer.learning_rate"] == digits_config.optimizer.learning_rate


def test_two_processes_that_prepare_digits_at_once(tmp_path, monkeypatch):
    """The second to come to the lock finds them prepared since it looked."""
    lock = tfds_source.fcntl.flock

    def lock_after_another(*args):
        monkeypatch.setattr(tfds_source.fcntl, "flock", lock)
        assert len(tfds_source.open_source(Config(), "test", str(tmp_path))) == 360
        lock(*args)

    monkeypatch.setattr(tfds_source.fcntl, "flock", lock_after_another)
    assert len(tfds_source.open_source(Config(), "train", str(tmp_path))) == 1437

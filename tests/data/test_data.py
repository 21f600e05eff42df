"""The order, the pipeline, the sources and the transforms: pure functions of seed and position."""

import dataclasses
import fcntl
import hashlib
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import with_data
from trainer.config import Config
from trainer.data import digits
from trainer.data import tfds as tfds_source
from trainer.data.pipeline import train_dataset
from trainer.data.source import open_source, open_split
from trainer.data.splits import tfds as tfds_split
from trainer.errors import UserError
from trainer.run.identity import run_metadata

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
    monkeypatch.setattr(tfds_split, "_IN_MEMORY_BYTES", 0)
    config = with_data(digits_config, crop="none", pad=0, eval_crop_ratio=1.0)
    from_disk = open_source(config, "train", data_dir)
    assert isinstance(from_disk, tfds_source.ArrayRecordSource)
    assert from_disk.image_shape is None
    for a, b in zip(_steps(config, from_disk, 21, 24), _steps(config, digits, 21, 24), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


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


def test_metadata_is_ready_for_json(digits_config, data_dir):
    split = open_split(digits_config, "train", data_dir).split
    metadata = json.loads(json.dumps(run_metadata(digits_config, split, split)))
    assert metadata["class_names"] == list("0123456789")
    assert metadata["mean"] == list(digits_config.data.mean)
    assert metadata["config"]["optimizer.learning_rate"] == digits_config.optimizer.learning_rate


def test_two_processes_that_prepare_digits_at_once(tmp_path, monkeypatch):
    """The second to come to the lock finds them prepared since it looked."""
    lock = fcntl.flock

    def lock_after_another(*args):
        monkeypatch.setattr(fcntl, "flock", lock)
        assert len(open_source(Config(), "test", str(tmp_path))) == 360
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", lock_after_another)
    assert len(open_source(Config(), "train", str(tmp_path))) == 1437

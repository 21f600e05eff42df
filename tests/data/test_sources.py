"""Any source: the same batches however they are read; arrays, synthetic images; and the errors."""

import dataclasses
import importlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import with_data
from tests.data.common import ALONE, everything, refusal
from tests.photo_files import photo_config
from trainer.config import AugmentConfig, Config, DataConfig, ModelConfig
from trainer.data.pipeline import batch_indices, eval_dataset, train_dataset
from trainer.data.source import open_source
from trainer.data.splits import tfds as tfds_split
from trainer.devices.checks import check_placement
from trainer.errors import UserError
from trainer.registry import SOURCES

# --- any source -------------------------------------------------------------------------------


class Numbered:
    """Images of one pixel that is the example's index."""

    image_shape = (1, 1, 3)
    channels = 3
    in_graph = True
    class_names = ("one", "other")

    def __init__(self, length: int):
        self._length = length

    def __len__(self):
        return self._length

    def describe(self, index):
        return str(index)

    def fetch(self, indices):
        digits = tf.stack([indices // 65536, indices // 256 % 256, indices % 256], axis=-1)
        return tf.cast(digits, tf.uint8)[:, None, None], tf.cast(indices % 2, tf.int32)


def order(config, length, start, steps, num_workers=1, replicas=1) -> np.ndarray:
    """The indices of the steps' global batches, put together from all workers: `[steps, B]`."""
    parts = []
    for worker in range(num_workers):
        context = tf.distribute.InputContext(num_workers, worker, num_workers * replicas)
        dataset = train_dataset(config, Numbered(length), start, context)
        images = np.stack([i for i, _ in dataset.take(steps * replicas).as_numpy_iterator()])
        numbers = images[..., 0, 0, :].astype(int) @ [65536, 256, 1]
        parts.append(numbers.reshape(steps, -1))
    return np.concatenate(parts, axis=1)


@settings(max_examples=6, deadline=None)
@given(
    length=st.integers(1, 2000),
    start=st.integers(0, 10**6),
    num_workers=st.sampled_from([1, 2, 3, 4]),
    replicas=st.sampled_from([1, 2]),
    shuffle=st.sampled_from(["full", "blocks"]),
    repeats=st.integers(1, 2),
)
def test_workers_together_see_what_one_sees_from_any_step(
    length, start, num_workers, replicas, shuffle, repeats
):
    config = Config(
        data=DataConfig(
            global_batch_size=48, image_size=1, shuffle=shuffle, repeats=repeats, train_split="x"
        )
    )
    alone = order(config, length, start, 3)
    shared = order(config, length, start, 3, num_workers, replicas)
    np.testing.assert_array_equal(alone, shared)
    np.testing.assert_array_equal(alone[1:], order(config, length, start + 1, 2))


def test_seeking_in_an_epoch_of_imagenets_size_fetches_only_what_it_needs():
    fetched = []

    class Watched(Numbered):
        def fetch(self, indices):
            def watch(indices):
                fetched.extend(indices)
                return indices

            indices = tf.ensure_shape(tf.numpy_function(watch, [indices], tf.int64), indices.shape)
            return super().fetch(indices)

    config = Config(data=DataConfig(global_batch_size=256, image_size=1))
    middle = 1_281_167 // 256 // 2
    batches = train_dataset(config, Watched(1_281_167), middle, ALONE).take(2)
    assert len(list(batches)) == 2
    assert len(fetched) < 256 * 100  # what is read ahead, of 2,502 batches before
    expected = batch_indices(config, Numbered(1_281_167), middle)
    assert set(expected) <= set(fetched)


@pytest.mark.parametrize(
    ("num_workers", "replicas", "skip"),
    [
        pytest.param(2, 1, False, marks=pytest.mark.slow),
        pytest.param(1, 4, False, marks=pytest.mark.slow),
        (2, 2, True),
    ],
)
def test_augmented_bytes_do_not_depend_on_who_reads_them(photo_folder, num_workers, replicas, skip):
    """Random crops, all augmentation, mixing: from any step, the same bytes."""
    config = dataclasses.replace(
        photo_config(
            global_batch_size=24, flip=True, on_bad_example="skip" if skip else "fail", repeats=2
        ),
        augment=AugmentConfig("randaugment", 2, 9.0, 0.4, 0.25, 0.2, 1.0),
    )
    source = open_source(config, "train", str(photo_folder))
    alone = list(train_dataset(config, source, 0, ALONE).take(4).as_numpy_iterator())
    parts = []
    for worker in range(num_workers):
        context = tf.distribute.InputContext(num_workers, worker, num_workers * replicas)
        elements = list(train_dataset(config, source, 1, context).take(3 * replicas))
        turns = [elements[n : n + replicas] for n in range(0, 3 * replicas, replicas)]
        parts.append([tuple(np.concatenate(c) for c in zip(*t, strict=True)) for t in turns])
    for step, (images, labels) in enumerate(alone[1:]):
        np.testing.assert_array_equal(images, np.concatenate([part[step][0] for part in parts]))
        np.testing.assert_array_equal(labels, np.concatenate([part[step][1] for part in parts]))


@pytest.mark.parametrize("name", ["folder", "tfrecord", "arrays"])
def test_an_address_is_refused(name):
    config = photo_config(name=name, crop="none")
    with pytest.raises(UserError, match=r"--data_dir=gs://bucket/x: data set '.*' is read from a"):
        open_source(config, "train", "gs://bucket/x")


# --- arrays and synthetic ---------------------------------------------------------------------


def array_config(**data) -> Config:
    data = {"name": "arrays", "path": "images.npz", "image_size": 8} | data
    return Config(model=ModelConfig(num_classes=10), data=DataConfig(**data))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (9, 7, 3)])
def test_arrays_are_what_was_saved(tmp_path, shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, *shape), np.uint8)
    labels = random.integers(0, 10, (20, 1))
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels)
    source = open_source(array_config(), "train", str(tmp_path))
    found, found_labels = everything(source)
    np.testing.assert_array_equal(found.reshape(images.shape), images)
    np.testing.assert_array_equal(found_labels, labels[:, 0])
    assert source.channels == (3 if len(shape) == 3 and shape[-1] == 3 else 1)
    for batch, _ in train_dataset(array_config(), source, 0, ALONE).take(1):
        assert batch.shape == (128, 8, 8, source.channels)


def test_what_is_wrong_with_arrays_is_said(tmp_path):
    config = array_config()
    assert "cannot be read as .npz (FileNotFoundError" in refusal(config, "train", tmp_path)
    path = tmp_path / "images.npz"
    path.write_text("no arrays")
    assert "cannot be read as .npz" in refusal(config, "train", tmp_path)
    images, labels = np.zeros((4, 8, 8), np.uint8), np.zeros(4, int)
    with path.open("wb") as file:
        np.save(file, images)  # one array, without names
    assert "cannot be read as .npz (TypeError" in refusal(config, "train", tmp_path)

    def save(**arrays):
        np.savez(path, **({"x_train": images, "y_train": labels} | arrays))

    save()
    assert "has no array x_test, y_test; it has x_train, y_train" in refusal(
        config, "test", tmp_path
    )
    save(x_train=images.astype(np.float32))
    assert "x_train must be uint8" in refusal(config, "train", tmp_path)
    save(y_train=labels[:3])
    assert "y_train must be integers [4]" in refusal(config, "train", tmp_path)
    save(y_train=labels.astype(float))
    assert "y_train must be integers [4]" in refusal(config, "train", tmp_path)
    save(x_train=np.array([{}] * 4, dtype=object))
    assert "cannot be read as .npz (ValueError" in refusal(config, "train", tmp_path)


def test_synthetic_images_are_as_many_as_imagenet_has():
    config = photo_config(name="synthetic", crop="none", image_size=16)
    source = open_source(config, "train", "")
    assert len(source) == 1_281_167
    batches = train_dataset(config, source, 0, ALONE).take(2)
    assert {images.shape for images, _ in batches} == {(8, 16, 16, 3)}
    images, labels, weights = next(iter(eval_dataset(config, source, ALONE)))
    assert images.shape == (8, 16, 16, 3)
    assert set(labels.numpy()) <= {0, 1}
    assert weights.numpy().all()


# --- where sources can be read ----------------------------------------------------------------


class SliceOfTwoHosts(tf.distribute.TPUStrategy):
    """A stand-in for a TPU slice, which cannot be here: what check_placement asks of one."""

    def __init__(self):
        pass

    extended = type("extended", (), {"num_hosts": 2})()


def test_a_tpu_slice_refuses_sources_that_need_python(data_dir, digits_config, monkeypatch):
    monkeypatch.setattr(tfds_split, "_IN_MEMORY_BYTES", 0)
    source = open_source(with_data(digits_config, crop="none", pad=0), "train", data_dir)
    assert not source.in_graph  # array_record
    with pytest.raises(UserError, match=r"data.name=digits: is read by Python, which the 2 hosts"):
        check_placement(SliceOfTwoHosts(), digits_config, source.in_graph)
    records = photo_config(name="tfrecord")
    check_placement(SliceOfTwoHosts(), records, in_graph=True)
    with pytest.raises(UserError, match=r"data.on_bad_example=skip: reports .* which the 2 hosts"):
        check_placement(SliceOfTwoHosts(), with_data(records, on_bad_example="skip"), in_graph=True)
    check_placement(tf.distribute.OneDeviceStrategy("/CPU:0"), digits_config, source.in_graph)


def test_every_source_of_the_dict_says_whether_it_is_in_graph():
    for name in set(SOURCES.values()):
        module = importlib.import_module(name)
        classes = [v for v in vars(module).values() if isinstance(v, type) and hasattr(v, "fetch")]
        classes = [c for c in classes if c.__name__ != "Records" and c.__module__ == name]
        assert classes, name
        assert all(isinstance(c.in_graph, bool) for c in classes), name

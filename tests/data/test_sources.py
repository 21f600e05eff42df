"""The sources of data sets: what they hold, that they read at random what they read in order, and
what they say of what is wrong."""

import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import with_data
from tests.photo_files import CLASSES, photo_config, write_photos
from trainer.config import AugmentConfig, Config, DataConfig, ModelConfig
from trainer.data import record_index, tfds_source
from trainer.data.digits import Digits
from trainer.data.pipeline import batch_indices, eval_dataset, train_dataset
from trainer.data.source import open_source
from trainer.devices.checks import check_placement
from trainer.errors import UserError
from trainer.registry import SOURCES

ALONE = tf.distribute.InputContext()


def everything(source) -> tuple[np.ndarray, np.ndarray]:
    images, labels = source.fetch(tf.range(len(source), dtype=tf.int64))
    return images.numpy(), labels.numpy()


def refusal(config: Config, split: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(config, split, str(data_dir))
    return str(caught.value)


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
    ("num_workers", "replicas", "skip"), [(2, 1, False), (1, 4, False), (2, 2, True)]
)
def test_augmented_bytes_do_not_depend_on_who_reads_them(folder, num_workers, replicas, skip):
    """Random crops, all augmentation, mixing: from any step, the same bytes."""
    config = dataclasses.replace(
        photo_config(
            global_batch_size=24, flip=True, on_bad_example="skip" if skip else "fail", repeats=2
        ),
        augment=AugmentConfig("randaugment", 2, 9.0, 0.4, 0.25, 0.2, 1.0),
    )
    source = open_source(config, "train", str(folder))
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


# --- folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photos, train=12, val=5)


def test_a_folder_is_its_files(folder):
    source = open_source(photo_config(), "train", str(folder))
    assert (len(source), source.class_names, source.channels) == (24, CLASSES, 3)
    images, labels = everything(source)
    expected = {
        (path.read_bytes(), CLASSES.index(path.parent.name))
        for path in (folder / "train").glob("*/*")
    }
    assert set(zip(images.tolist(), labels.tolist(), strict=True)) == expected
    described = [Path(source.describe(index)) for index in range(24)]
    assert [path.read_bytes() for path in described] == images.tolist()
    # Neighbours are of mixed classes, so that blocks of them are.
    assert 5 < np.abs(np.diff(labels)).sum() < 20


def test_the_order_of_files_is_not_the_file_systems(folder, tmp_path):
    """A copy, written in another order."""
    for path in sorted(folder.rglob("*.*"), reverse=True):
        target = tmp_path / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    here, there = (
        everything(open_source(photo_config(), "train", str(root)))[0].tolist()
        for root in (folder, tmp_path)
    )
    assert here == there


def test_one_root_is_split_by_a_hash_that_stays(folder):
    config = photo_config(eval_fraction=0.3, path="train")
    training, held_out = (
        set(everything(open_source(config, split, str(folder)))[0].tolist())
        for split in ("train", "val")
    )
    assert training.isdisjoint(held_out)
    assert training | held_out == {p.read_bytes() for p in (folder / "train").glob("*/*")}
    more = with_data(config, eval_fraction=0.6)
    assert held_out < set(everything(open_source(more, "val", str(folder)))[0].tolist())


def test_the_split_has_the_share_that_was_asked_for():
    from trainer.data import folder as module

    digests = [module.hashlib.sha256(str(n).encode()).digest() for n in range(10_000)]
    share = np.mean([module._is_held_out(digest, 0.2) for digest in digests])
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 10_000)


def test_a_fraction_that_leaves_nothing_is_said(folder):
    config = photo_config(eval_fraction=1e-9, path="train")
    message = refusal(config, "val", folder)
    assert message.startswith("data.eval_fraction (1e-09): leaves split 'val' of ")


def test_what_is_wrong_with_a_folder_is_said(folder, tmp_path):
    assert "there/train: cannot be listed (No such file or directory); images lie in" in refusal(
        photo_config(path="there"), "train", tmp_path
    )
    (tmp_path / "train").mkdir()
    assert "train: has no images in folders of classes" in refusal(
        photo_config(), "train", tmp_path
    )
    (tmp_path / "train" / "china").mkdir()
    for name in ("notes.txt", "._001.jpg"):
        (tmp_path / "train" / "china" / name).write_text("no image")
    assert "train: has no images in folders of classes" in refusal(
        photo_config(), "train", tmp_path
    )
    three = photo_config()
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "zebra").mkdir()
    assert "has 3 classes: --set model.num_classes=3" in refusal(
        photo_config(on_bad_example="skip"), "train", tmp_path / "photos"
    )
    assert "train/zebra: has no images; mend it" in refusal(three, "train", tmp_path / "photos")


def test_a_class_without_images_or_only_in_evaluation(folder, tmp_path, capsys):
    root = shutil.copytree(folder, tmp_path / "photos")
    shutil.copytree(root / "val" / "china", root / "val" / "zebra")
    message = refusal(photo_config(), "val", root)
    assert f"{root}/val/zebra: a class that {root}/train does not have; mend it" in message
    skipping = open_source(photo_config(on_bad_example="skip"), "val", str(root))
    assert len(skipping) == 10
    assert f"left out: {root}/val/zebra" in capsys.readouterr().out


# --- tfrecord ---------------------------------------------------------------------------------


def write_records(
    root: Path,
    split: str,
    shards: int,
    per_shard: int,
    image_field: str = "image/encoded",
    label_field: str = "image/class/label",
    first_label: int = 0,
) -> list[bytes]:
    """Records whose images are texts of various lengths; returns the images in order."""
    images = []
    for shard in range(shards):
        with tf.io.TFRecordWriter(f"{root}/{split}-{shard:05d}-of-{shards:05d}") as writer:
            for number in range(per_shard):
                image = f"{shard} {number}".encode() * (1 + 1000 * number)
                images.append(image)
                text = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
                label = tf.train.Int64List(value=[first_label + number % 2])
                features = {image_field: text, label_field: tf.train.Feature(int64_list=label)}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    return images


def record_config(**data) -> Config:
    return photo_config(name="tfrecord", **data)


def test_records_are_read_at_random(tmp_path):
    images = write_records(tmp_path, "train", 3, 40)
    source = open_source(record_config(), "train", str(tmp_path))
    assert len(source) == 120
    chosen = np.random.default_rng(0).permutation(120)
    found, labels = source.fetch(tf.constant(chosen))
    assert found.numpy().tolist() == [images[index] for index in chosen]
    np.testing.assert_array_equal(labels, chosen % 40 % 2)
    one, _ = source.fetch(tf.constant([77], tf.int64))
    assert one.numpy().tolist() == [images[77]]
    assert source.describe(77).startswith(f"{tmp_path}/train-00001-of-00003, the record at byte ")


def test_field_names_and_the_first_label_are_settings(tmp_path):
    images = write_records(tmp_path, "val", 1, 5, "picture", "kind", first_label=1)
    config = record_config(image_field="picture", label_field="kind", first_label=1)
    found, labels = everything(open_source(config, "val", str(tmp_path)))
    assert found.tolist() == images
    assert labels.tolist() == [0, 1, 0, 1, 0]


def test_class_names_come_from_the_manifest(tmp_path):
    write_records(tmp_path, "train", 1, 4)
    assert open_source(record_config(), "train", str(tmp_path)).class_names == ("0", "1")
    (tmp_path / "manifest.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    assert open_source(record_config(), "train", str(tmp_path)).class_names == ("cat", "dog")
    for broken in ("{", "[]", "{}", '{"class_names": 3}', '{"class_names": [], "splits": null}'):
        (tmp_path / "manifest.json").write_text(broken)
        assert "manifest.json: cannot be read" in refusal(record_config(), "train", tmp_path)


def test_the_index_is_kept_and_a_changed_shard_is_noticed(tmp_path, capsys, monkeypatch):
    write_records(tmp_path, "train", 2, 10)
    first = open_source(record_config(), "train", str(tmp_path))
    with monkeypatch.context() as patch:  # nothing is scanned twice
        patch.setattr(record_index, "_scan", None)
        again = open_source(record_config(), "train", str(tmp_path))
    np.testing.assert_array_equal(everything(again)[0], everything(first)[0])

    shard = tmp_path / "train-00001-of-00002"
    size = shard.stat().st_size
    whole = shard.read_bytes()
    (tmp_path / "other").mkdir()
    write_records(tmp_path / "other", "train", 1, 7)
    shard.write_bytes((tmp_path / "other" / "train-00000-of-00001").read_bytes())
    assert shard.stat().st_size != size
    changed = open_source(record_config(), "train", str(tmp_path))
    assert len(changed) == 17
    assert f"{shard}: has changed since it was indexed" in capsys.readouterr().out
    shard.write_bytes(whole)
    os.utime(shard, ns=(1, 1))  # the same size, another time
    assert len(open_source(record_config(), "train", str(tmp_path))) == 20
    assert f"{shard}: has changed since it was indexed" in capsys.readouterr().out


def test_a_broken_index_is_made_again(tmp_path):
    write_records(tmp_path, "train", 1, 10)
    index = tmp_path / record_index.INDEX
    assert len(open_source(record_config(), "train", str(tmp_path))) == 10
    for broken in (b"no index", b"", index.read_bytes()[:-30], index.read_bytes()[:100]):
        index.write_bytes(broken)
        assert len(open_source(record_config(), "train", str(tmp_path))) == 10
    assert [path.name for path in tmp_path.glob(".*")] == [record_index.INDEX]  # no litter


def test_one_index_serves_all_splits(tmp_path, monkeypatch):
    for split, shards in (("train", 2), ("val", 1)):
        write_records(tmp_path, split, shards, 10)
        open_source(record_config(), split, str(tmp_path))
    monkeypatch.setattr(record_index, "_scan", None)
    for split, count in (("train", 20), ("val", 10)):
        assert len(open_source(record_config(), split, str(tmp_path))) == count


def test_what_is_wrong_with_records_is_said(tmp_path, capsys):
    config, skipping = record_config(), record_config(on_bad_example="skip")
    assert "has no files train-00000-of-NNNNN" in refusal(config, "train", tmp_path)
    assert "cannot be listed" in refusal(record_config(path="there"), "train", tmp_path)
    write_records(tmp_path, "train", 3, 10)

    shard = tmp_path / "train-00002-of-00003"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert f"{shard}: ends in the middle of record 9; restore it" in refusal(
        config, "train", tmp_path
    )
    assert len(open_source(skipping, "train", str(tmp_path))) == 29
    assert f"left out: {shard}: ends in the middle of record 9" in capsys.readouterr().out

    shard.unlink()
    assert "of 3 shards there is no train-00002; restore it" in refusal(config, "train", tmp_path)
    assert len(open_source(skipping, "train", str(tmp_path))) == 20

    shard.write_bytes(gzip.compress(b"records"))
    assert f"{shard}: is compressed (gzip), and has no random access" in refusal(
        config, "train", tmp_path
    )
    shard.write_bytes(b"")
    assert f"{shard}: has no records; restore it" in refusal(config, "train", tmp_path)
    assert len(open_source(skipping, "train", str(tmp_path))) == 20

    shard.unlink()
    write_records(tmp_path, "train", 2, 10)
    assert "has shards of several sets of 'train', of [2, 3] files" in refusal(
        config, "train", tmp_path
    )


def test_a_first_record_whose_length_looks_like_a_compressed_file(tmp_path):
    """376 is 0x178, and zlib's files begin with 0x78 0x01."""
    with tf.io.TFRecordWriter(f"{tmp_path}/train.tfrecord") as writer:
        for length in (376, 5):
            writer.write(bytes(length))
    assert len(open_source(record_config(), "train", str(tmp_path))) == 2


def test_a_shard_that_is_not_the_manifests(tmp_path):
    """Cut at the end of a record, which its form does not show."""
    write_records(tmp_path, "train", 1, 10)
    shard = tmp_path / "train-00000-of-00001"
    shards = [{"bytes": shard.stat().st_size, "examples": 10}]
    manifest = {"class_names": ["a", "b"], "splits": {"train": {"shards": shards}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    source = open_source(record_config(), "train", str(tmp_path))
    shard.write_bytes(shard.read_bytes()[: int(source._records._offsets[9])])
    message = refusal(record_config(), "train", tmp_path)
    assert message.startswith(
        f"{shard}: has {shard.stat().st_size:,} bytes, and manifest.json says "
    )


def test_labels_that_int32_does_not_hold_stay_outside(tmp_path):
    write_records(tmp_path, "train", 1, 4, first_label=2**32)
    _, labels = everything(open_source(record_config(), "train", str(tmp_path)))
    assert (labels > 2**30).all()


@pytest.mark.parametrize("name", ["folder", "tfrecord", "arrays"])
def test_an_address_is_refused(name):
    config = photo_config(name=name, crop="none")
    with pytest.raises(UserError, match=r"--data_dir=gs://bucket/x: data set '.*' is read from a"):
        open_source(config, "train", "gs://bucket/x")


def test_a_record_without_the_fields_is_a_bad_one(tmp_path):
    write_records(tmp_path, "train", 1, 3, image_field="picture")
    source = open_source(record_config(), "train", str(tmp_path))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/encoded"):
        source.fetch(tf.constant([0], tf.int64))


# --- TFDS, prepared as TFRecord ---------------------------------------------------------------


@pytest.fixture(scope="module")
def digit_records(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfrecord"))
    tfds.disable_progress_bar()
    Digits(data_dir=folder).download_and_prepare(file_format="tfrecord")
    return folder


@pytest.mark.parametrize("split", ["train", "train[10%:50%]", "test+train[:7]"])
def test_tfds_in_either_format_is_the_same(digits_config, digit_records, monkeypatch, split):
    in_memory = open_source(digits_config, split, digit_records)
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_BYTES", 0)
    from_disk = open_source(with_data(digits_config, crop="none", pad=0), split, digit_records)
    assert from_disk.in_graph
    assert len(from_disk) == len(in_memory)
    files, labels = everything(from_disk)
    images = [tf.io.decode_png(file).numpy().tobytes() for file in files]
    found = list(zip(images, labels, strict=True))
    expected = [(image.tobytes(), n) for image, n in zip(*everything(in_memory), strict=True)]
    assert sorted(found) == sorted(expected)


def test_a_cut_tfds_shard_is_said(digits_config, digit_records, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_BYTES", 0)
    root = shutil.copytree(digit_records, tmp_path / "data")
    (shard,) = root.rglob("digits-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1])
    config = with_data(digits_config, crop="none", pad=0)
    assert "has 1436 whole records, and TFDS wrote 1437" in refusal(config, "train", root)


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
    assert "y_train must be whole numbers [4]" in refusal(config, "train", tmp_path)
    save(y_train=labels.astype(float))
    assert "y_train must be whole numbers [4]" in refusal(config, "train", tmp_path)
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
    monkeypatch.setattr(tfds_source, "_IN_MEMORY_BYTES", 0)
    source = open_source(with_data(digits_config, crop="none", pad=0), "train", data_dir)
    assert not source.in_graph  # array_record
    with pytest.raises(UserError, match=r"data.name=digits: is read by Python, which the 2 hosts"):
        check_placement(SliceOfTwoHosts(), digits_config, source.in_graph)
    check_placement(SliceOfTwoHosts(), record_config(), in_graph=True)
    with pytest.raises(UserError, match=r"data.on_bad_example=skip: tells .* which the 2 hosts"):
        check_placement(SliceOfTwoHosts(), record_config(on_bad_example="skip"), in_graph=True)
    check_placement(tf.distribute.OneDeviceStrategy("/CPU:0"), digits_config, source.in_graph)


def test_every_source_of_the_dict_says_whether_it_is_in_graph():
    import importlib

    for name in set(SOURCES.values()):
        module = importlib.import_module(name)
        classes = [v for v in vars(module).values() if isinstance(v, type) and hasattr(v, "fetch")]
        classes = [c for c in classes if c.__name__ != "Records" and c.__module__ == name]
        assert classes, name
        assert all(isinstance(c.in_graph, bool) for c in classes), name

"""TFRecord files, read at random: manifest, index, damaged files, and files that TFDS wrote."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.conftest import with_data
from tests.data.common import everything, refusal
from tests.photo_files import photo_config
from trainer.config import Config
from trainer.data.digits import Digits
from trainer.data.source import open_source
from trainer.data.splits import record_index
from trainer.data.splits import tfds as tfds_split


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
    (tmp_path / ".DS_Store").touch()
    assert "has no files train-00000-of-NNNNN" in refusal(config, "train", tmp_path)
    assert refusal(config, "train", tmp_path).endswith("; it has none")
    assert "cannot be listed" in refusal(record_config(path="there"), "train", tmp_path)
    write_records(tmp_path, "train", 3, 10)
    (tmp_path / ".train-00000-of-00001.json").write_text("{}")
    (tmp_path / "test.tfrecord").touch()
    assert refusal(config, "val", tmp_path).endswith("; it has the splits test, train")

    shard = tmp_path / "train-00002-of-00003"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert f"{shard}: ends in the middle of record 9; restore it" in refusal(
        config, "train", tmp_path
    )
    assert len(open_source(skipping, "train", str(tmp_path))) == 29
    assert f"left out: {shard}: ends in the middle of record 9" in capsys.readouterr().out

    shard.unlink()
    assert "train-00002 is missing, of 3 shards; restore it" in refusal(config, "train", tmp_path)
    assert len(open_source(skipping, "train", str(tmp_path))) == 20

    shard.write_bytes(gzip.compress(b"records"))
    assert f"{shard}: is compressed (gzip), so records cannot be read at random" in refusal(
        config, "train", tmp_path
    )
    shard.write_bytes(b"")
    assert f"{shard}: has no records; restore it" in refusal(config, "train", tmp_path)
    assert len(open_source(skipping, "train", str(tmp_path))) == 20

    shard.unlink()
    write_records(tmp_path, "train", 2, 10)
    assert "has several sets of shards of 'train', of [2, 3] files" in refusal(
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
        f"{shard}: has {shard.stat().st_size:,} bytes, but manifest.json says "
    )


def test_labels_that_int32_does_not_hold_stay_outside(tmp_path):
    write_records(tmp_path, "train", 1, 4, first_label=2**32)
    _, labels = everything(open_source(record_config(), "train", str(tmp_path)))
    assert (labels > 2**30).all()


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


@pytest.mark.parametrize(
    "split", [pytest.param("train", marks=pytest.mark.slow), "train[10%:50%]", "test+train[:7]"]
)
def test_tfds_in_either_format_is_the_same(digits_config, digit_records, monkeypatch, split):
    in_memory = open_source(digits_config, split, digit_records)
    monkeypatch.setattr(tfds_split, "_IN_MEMORY_BYTES", 0)
    from_disk = open_source(with_data(digits_config, crop="none", pad=0), split, digit_records)
    assert from_disk.in_graph
    assert len(from_disk) == len(in_memory)
    files, labels = everything(from_disk)
    images = [tf.io.decode_png(file).numpy().tobytes() for file in files]
    found = list(zip(images, labels, strict=True))
    expected = [(image.tobytes(), n) for image, n in zip(*everything(in_memory), strict=True)]
    assert sorted(found) == sorted(expected)


def test_a_cut_tfds_shard_is_said(digits_config, digit_records, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_split, "_IN_MEMORY_BYTES", 0)
    root = shutil.copytree(digit_records, tmp_path / "data")
    (shard,) = root.rglob("digits-train.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1])
    config = with_data(digits_config, crop="none", pad=0)
    assert "has 1436 whole records, but TFDS wrote 1437" in refusal(config, "train", root)

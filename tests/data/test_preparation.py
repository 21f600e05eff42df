"""`trainer.prepare`: what it writes against what it read, and what stops it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.photo_files import CLASSES, photo_config, write_photos
from trainer.data import preparation
from trainer.data.preparation import Request, prepare
from trainer.data.source import open_source
from trainer.errors import UserError
from trainer.files import locked


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photos, train=30, val=6)


def content(folder: Path, split: str, name: str) -> list[tuple[bytes, int]]:
    source = open_source(photo_config(name=name), split, str(folder))
    images, labels = source.fetch(tf.range(len(source), dtype=tf.int64))
    return list(zip(images.numpy().tolist(), labels.numpy().tolist(), strict=True))


def test_records_hold_what_the_folders_hold_in_its_order(folder, tmp_path, capsys):
    prepare(Request(folder, tmp_path, shard_mb=0.1, threads=2))
    for split in ("train", "val"):
        assert content(tmp_path, split, "tfrecord") == content(folder, split, "folder")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["class_names"] == list(CLASSES)
    shards = sorted(tmp_path.glob("train-*"))
    assert len(shards) > 3
    training = manifest["splits"]["train"]
    assert (training["examples"], training["bad"]) == (60, 0)
    assert training["classes"] == dict.fromkeys(CLASSES, 30)
    assert sum(shard["examples"] for shard in training["shards"]) == 60
    for path, entry in zip(shards, training["shards"], strict=True):
        assert entry["bytes"] == path.stat().st_size
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "train: 60 images in" in capsys.readouterr().out


def test_the_fields_are_imagenets(folder, tmp_path):
    prepare(Request(folder, tmp_path))
    record = next(iter(tf.data.TFRecordDataset(str(tmp_path / "val-00000-of-00001"))))
    example = tf.train.Example.FromString(record.numpy()).features.feature
    name = example["image/filename"].bytes_list.value[0].decode()
    assert (folder / name).read_bytes() == example["image/encoded"].bytes_list.value[0]
    label = example["image/class/label"].int64_list.value[0]
    assert CLASSES[label] == Path(name).parent.name
    assert example["image/class/text"].bytes_list.value[0].decode() == CLASSES[label]
    shape = [example[f"image/{k}"].int64_list.value[0] for k in ("height", "width")]
    image = tf.io.decode_image(
        example["image/encoded"].bytes_list.value[0], expand_animations=False
    )
    assert shape == image.shape.as_list()[:2]


def test_one_root_is_split_as_training_splits_it(folder, tmp_path):
    prepare(Request(folder / "train", tmp_path, eval_fraction=0.25))
    config = photo_config(eval_fraction=0.25)
    for split in ("train", "val"):
        source = open_source(config, split, str(folder / "train"))
        images = source.fetch(tf.range(len(source), dtype=tf.int64))[0].numpy().tolist()
        assert [image for image, _ in content(tmp_path, split, "tfrecord")] == images


def test_what_is_done_is_kept_and_what_changed_is_made_again(photos, tmp_path):
    source = write_photos(tmp_path / "photos", photos, train=20, val=2)
    out = tmp_path / "out"
    request = Request(source, out, shard_mb=0.1)
    prepare(request)
    times = {path: path.stat().st_mtime_ns for path in sorted(out.glob("train-*"))}
    prepare(request)
    assert {path: path.stat().st_mtime_ns for path in times} == times

    (source / "train" / "china" / "000.jpg").write_text("no image any more")
    with pytest.raises(UserError, match="1 bad"):
        prepare(request)
    assert not (out / "manifest.json").exists()  # it would describe files that have changed
    write_photos(tmp_path / "again", photos, train=20, val=2)
    (tmp_path / "again" / "train" / "china" / "000.jpg").replace(
        source / "train" / "china" / "000.jpg"
    )
    prepare(request)
    times = {path: path.stat().st_mtime_ns for path in times}

    damaged, *_ = times
    damaged.write_bytes(damaged.read_bytes()[:-1])
    prepare(request)
    assert content(out, "train", "tfrecord") == content(source, "train", "folder")
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {damaged}


# Dies once three shards are complete.
_DYING = """
import os, signal
from trainer import prepare
from trainer.data import preparation

original, made = preparation._make, []

def make(*args):
    made.append(original(*args))
    if len(made) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return made[-1]

preparation._make = make
prepare.main()
"""


def test_killed_in_its_midst_it_goes_on(photos, tmp_path):
    source = write_photos(tmp_path / "photos", photos, train=60, val=2)
    undisturbed = tmp_path / "undisturbed"
    prepare(Request(source, undisturbed, shard_mb=0.1))
    flags = [f"--source={source}", "--threads=1", f"--out={tmp_path / 'out'}", "--shard_mb=0.1"]
    killed = subprocess.run([sys.executable, "-c", _DYING, *flags], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*")}
    assert 3 == len(made) < len(list(undisturbed.glob("train-*")))
    command = [sys.executable, "-m", "trainer.prepare", *flags]
    done = subprocess.run(command, check=True, capture_output=True)
    assert done.stderr == b""  # the bar is for terminals
    assert {path: path.stat().st_mtime_ns for path in made} == made
    manifests = [
        json.loads((f / "manifest.json").read_text()) for f in (undisturbed, tmp_path / "out")
    ]
    assert manifests[0] == manifests[1]


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys):
    times = iter([0.0, 29.0, 31.0, 60.0, 61.0])
    with preparation._Bar(4000, clock=lambda: next(times)) as bar:
        for _ in range(4):
            bar.update(1000)
    captured = capsys.readouterr()
    assert captured.out == "2,000 of 4,000 images\n4,000 of 4,000 images\n"
    assert captured.err == ""


def test_bad_images_are_all_reported(photos, tmp_path, capsys):
    source = write_photos(tmp_path / "photos", photos, train=10, val=2)
    bad = [source / "train" / "china" / "000.jpg", source / "val" / "flower" / "000.jpg"]
    for path in bad:
        path.write_text("no image")
    (source / "train" / "zebra").mkdir()
    out = tmp_path / "out"
    with pytest.raises(UserError, match="3 bad: fix or remove them, or leave them out"):
        prepare(Request(source, out))
    printed = capsys.readouterr().out
    assert f"bad: {source}/train/zebra: has no images" in printed
    assert all(f"bad: {path}: Unknown image file format" in printed for path in bad)
    assert not (out / "manifest.json").exists()
    listed = (out / "bad_examples.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == sorted(map(str, bad))

    prepare(Request(source, out, skip=True))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["splits"]["train"]["examples"] == 19
    assert manifest["splits"]["train"]["bad"] == 1
    assert manifest["splits"]["train"]["classes"] == {"china": 9, "flower": 10, "zebra": 0}


def test_a_full_disk_is_no_traceback(folder):
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match=r"--out=/dev/full: cannot be written"):
            prepare(Request(folder, Path("/dev/full")))


def test_what_could_not_be_read_is_read_again(photos, tmp_path):
    """A mode changes neither the size nor the time of a file; nor does what a kill leaves of a
    receipt make the next run stop."""
    source, out = write_photos(tmp_path / "photos", photos, train=10, val=2), tmp_path / "out"
    path = source / "train" / "china" / "000.jpg"
    whole, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="1 bad"):
        prepare(Request(source, out))
    assert (out / "bad_examples.txt").exists()
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (out / ".val-00000-of-00001.json").write_text('{"made_of"')
    prepare(Request(source, out))
    assert not (out / "bad_examples.txt").exists()
    assert content(out, "train", "tfrecord") == content(source, "train", "folder")


def test_what_training_refuses_is_bad(photos, tmp_path, capsys):
    source = write_photos(tmp_path / "photos", photos, train=3, val=2)
    Image.fromarray(photos[0]).quantize(64).save(source / "train" / "china" / "palette.bmp")
    with pytest.raises(UserError, match="1 bad"):
        prepare(Request(source, None))
    assert "palette.bmp: " in capsys.readouterr().out


def test_names_that_are_no_text(photos, tmp_path):
    source = write_photos(tmp_path / "photos", photos, train=3, val=2)
    for split in ("train", "val"):
        folder = source / split / "china"
        folder.rename(source / split / os.fsdecode(b"chin\xe9"))
    prepare(Request(source, tmp_path / "out"))
    found = open_source(photo_config(name="tfrecord"), "train", str(tmp_path / "out"))
    assert found.class_names == (os.fsdecode(b"chin\xe9"), "flower")


def test_verifying_alone_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    prepare(Request(folder, None))
    assert sorted(folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"there/train: cannot be listed .* is set by --source;"):
        prepare(Request(tmp_path / "there", tmp_path / "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"--out=.*/file/out: cannot be written \(Not a directory\)"
    ):
        prepare(Request(folder, tmp_path / "file" / "out"))
    (tmp_path / "locked").mkdir()
    with (
        locked(tmp_path / "locked" / ".lock"),
        pytest.raises(UserError, match=r"--out=.*/locked: another process is writing there"),
    ):
        prepare(Request(folder, tmp_path / "locked"))
    prepare(Request(folder, tmp_path / "out", shard_mb=0.2))
    with pytest.raises(UserError, match="has other shards, such as train-00000-of-"):
        prepare(Request(folder, tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --source: must name the root of the folders\n"),
        (["--source=x"], "error: --out: must name a folder for the TFRecord files"),
        (["--source=x", "--out=y", "--splits=train"], "error: --splits=train: must be two"),
        (["--from=tar"], "error: --from=tar: must be one of folder"),
    ],
)
def test_bad_arguments(arguments, message):
    command = [sys.executable, "-m", "trainer.prepare", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_labels_are_evenly_mixed_over_shards(folder, tmp_path):
    prepare(Request(folder, tmp_path, shard_mb=0.15))
    labels = np.array([label for _, label in content(tmp_path, "train", "tfrecord")])
    assert 15 < np.abs(np.diff(labels)).sum() < 45

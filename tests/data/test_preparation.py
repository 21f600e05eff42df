"""`trainer.prepare`: what it writes against what it read, and what stops it."""

import copy
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image, features

from tests.photo_files import CLASSES, photo_config, write_photos
from tests.verb_runs import only_line, run_main
from trainer import main
from trainer.config import load, override
from trainer.data import preparation
from trainer.data.conversion import ConversionError, decodable
from trainer.data.images import decode_whole
from trainer.data.preparation import prepare
from trainer.data.source import open_source
from trainer.data.splits.request import Request
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
    printed = capsys.readouterr().out
    assert "train: 60 images in" in printed
    assert "warning" not in printed
    assert not (tmp_path / "duplicates.txt").exists()


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
    assert "the same image" not in printed  # though both bad files have the same content
    assert all(f"bad: {path}: Unknown image file format" in printed for path in bad)
    assert not (out / "manifest.json").exists()
    listed = (out / "bad_examples.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == sorted(map(str, bad))

    prepare(Request(source, out, skip=True))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["splits"]["train"]["examples"] == 19
    assert manifest["splits"]["train"]["bad"] == 1
    assert manifest["splits"]["train"]["classes"] == {"china": 9, "flower": 10}
    assert manifest["class_names"] == list(CLASSES)  # an empty folder is no class


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


# --- what Pillow reads ------------------------------------------------------------------------


def pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_pillow_reads_is_converted_without_loss(photos):
    """Decoded by TensorFlow, the pixels are those that Pillow reads from the original."""
    color = Image.fromarray(photos[0][:40, :60])
    grey, transparent = color.convert("L"), color.convert("RGBA")
    transparent.putalpha(grey)
    originals = {
        "a.tif": pillow(color, "TIFF"),
        "b.TIFF": pillow(grey, "TIFF", compression="tiff_lzw"),
        "c.tif": pillow(transparent, "TIFF"),
        "d.tif": pillow(color, "TIFF", save_all=True, append_images=[grey]),
        "e.tif": pillow(color.convert("CMYK"), "TIFF"),
        "f.tif": pillow(color.quantize(32), "TIFF"),
        "g.tif": pillow(color.convert("1"), "TIFF"),
        "h.jp2": pillow(color, "JPEG2000"),
        "i.ppm": pillow(color, "PPM"),
        "j.tga": pillow(color, "TGA"),
    }
    if features.check("avif"):
        originals["k.avif"] = pillow(color, "AVIF")
    for name, original in originals.items():
        converted = decodable(name, original)
        assert tf.io.decode_image(converted, 3).shape == (40, 60, 3)
        expected = np.array(Image.open(io.BytesIO(original)).convert("RGB"))
        np.testing.assert_array_equal(decode_whole(tf.constant(converted)), expected, name)
    assert decodable("x.jpg", originals["a.tif"]) == originals["a.tif"]


def test_16_bits_keep_their_upper_half():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    for name, original in (
        ("a.tif", pillow(Image.fromarray(values), "TIFF")),
        ("a.pgm", b"P5 256 256 65535 " + values.astype(">u2").tobytes()),
    ):
        decoded = tf.io.decode_image(decodable(name, original), 1)
        np.testing.assert_array_equal(decoded[..., 0], values >> 8)
    for wide in (values.astype(np.float32), values.astype(np.int32) + 1):
        with pytest.raises(ConversionError, match=r"has values from .* to 65.*: save it with"):
            decodable("a.tif", pillow(Image.fromarray(wide), "TIFF"))


def test_records_hold_converted_images_and_the_rest_is_bad(photos, tmp_path, capsys):
    source, out = write_photos(tmp_path / "photos", photos, train=2, val=2), tmp_path / "out"
    china = source / "train" / "china"
    piece = Image.fromarray(photos[0][:50, :70])
    piece.save(china / "a.tif")
    (china / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (china / "c.tif").write_bytes((china / "a.tif").read_bytes()[:-2000])
    (china / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="2 bad"):
        prepare(Request(source, out))
    printed = capsys.readouterr().out
    assert f"{source}/train: 1 file is not read: 1 .txt\n" in printed
    assert f"bad: {china}/b.heic: Pillow {PIL.__version__} does not read it: save it as" in printed
    assert f"bad: {china}/c.tif: Pillow {PIL.__version__}: " in printed
    prepare(Request(source, out, skip=True))
    pixels = [
        image.tolist()
        for encoded, label in content(out, "train", "tfrecord")
        if (image := decode_whole(tf.constant(encoded)).numpy()).shape == (50, 70, 3) and label == 0
    ]
    assert pixels == [np.array(piece).tolist()]
    prepare(Request(source, None, skip=True))
    assert "\n1 image(s) need --to=tfrecord, which converts them" in capsys.readouterr().out


# --- duplicates -------------------------------------------------------------------------------


def test_copies_in_other_classes_and_splits_are_named(photos, tmp_path, capsys):
    source, out = write_photos(tmp_path / "photos", photos, train=8, val=8), tmp_path / "out"
    train, val = source / "train", source / "val"
    shutil.copy(train / "china" / "000.jpg", train / "flower" / "as_flower.jpg")
    shutil.copy(train / "china" / "001.png", val / "china" / "again.png")
    for name in ("copy.jpg", "copy_2.jpg"):
        shutil.copy(val / "flower" / "006.jpg", val / "flower" / name)
    names = [
        ("train/china/000.jpg", "train/flower/as_flower.jpg"),
        ("train/china/001.png", "val/china/again.png"),
    ]
    request = Request(source, out, shard_mb=0.03)
    for again in (False, True):  # what is done already is not read again
        prepare(request)
        printed = capsys.readouterr().out.splitlines()
        same = [line.split(": ")[2] for line in printed if "the same image" in line]
        assert {tuple(sorted(line.split(", "))) for line in same} == set(names), again
        text = "\n".join(printed)
        assert "warning: 1 image(s) are in both splits, so evaluation measures" in text
        assert "warning: 1 image(s) are in several classes, so some labels are wrong" in text
        assert "\n2 file(s) are copies of another one in their class and split\n" in text
        assert f"all of them: {out}/duplicates.txt" in text
        lines = [line.split("\t") for line in (out / "duplicates.txt").read_text().splitlines()]
        groups = [sorted(lines[:2]), sorted(lines[2:])]
        found = {tuple(os.path.relpath(path, source) for *_, path in group) for group in groups}
        assert found == set(names)
        for digest, split, path in lines:
            assert Path(path).is_relative_to(source / split)
            content_of = Path(path).read_bytes()
            assert digest == hashlib.blake2b(content_of, digest_size=16).hexdigest()
    for _, second in names:
        (source / second).unlink()
    prepare(Request(source, tmp_path / "other"))
    assert "warning" not in capsys.readouterr().out


def test_verifying_alone_names_copies_across_a_fraction(photos, tmp_path, capsys):
    source = write_photos(tmp_path / "photos", photos, train=6) / "train"
    for number in range(20):
        shutil.copy(source / "china" / "000.jpg", source / "china" / f"copy-{number}.jpg")
    prepare(Request(source, None, eval_fraction=0.5))
    printed = capsys.readouterr().out
    assert "warning: the same image: china/" in printed
    assert " (train), china/" in printed
    assert "and 16 more\n" in printed
    assert "in several classes" not in printed
    assert "\n19 file(s) are copies of another one in their class and split" in printed


# --- the command at the end -------------------------------------------------------------------


def test_the_command_at_the_end_trains_on_what_was_prepared(photos, tmp_path, capsys):
    """Three classes: not the recipe's or the config's number."""
    root = write_photos(tmp_path / "my photos", photos, train=4, test=3)
    for split in ("train", "test"):
        shutil.copytree(root / split / "china", root / split / "zebra")
    (root / "train" / "zebra" / "001.png").write_text("no image")
    request = Request(root, tmp_path / "my records", ("train", "test"), skip=True)
    for one, counts in (
        (request, (11, 9)),
        (request._replace(out=None), (12, 9)),
        (
            Request(root / "train", tmp_path / "split", eval_fraction=0.5, skip=True),
            (5, 6),
        ),
        (Request(root / "train", None, eval_fraction=0.5, skip=True), (6, 6)),
    ):
        prepare(one)
        *_, last = capsys.readouterr().out.splitlines()
        words = shlex.split(last.removeprefix("train with: "))
        assert words[:3] == ["python", "-m", "trainer.main"]
        flags = copy.deepcopy(main.FLAGS)
        assert flags(words[2:]) == ["trainer.main"]
        config = override(load(flags["config"].value), flags["set"].value)
        data_dir = flags["data_dir"].value
        opened = [
            open_source(config, split, data_dir)
            for split in (config.data.train_split, config.data.eval_split)
        ]
        assert tuple(map(len, opened)) == counts
        assert [source.class_names for source in opened] == [("china", "flower", "zebra")] * 2
        assert (config.data.on_bad_example == "skip") == (one.out is None)


def test_a_mistake_shows_before_tensorflow_is_imported(stubs, tmp_path):
    source = write_text_images(tmp_path)
    message = only_line(
        run_main(f"--source={source}", "--to=nothing", pythonpath=stubs, verb="trainer.prepare")
    )
    assert message.endswith(f"; {source} has validation: --splits=train,validation")


def write_text_images(root: Path) -> Path:
    for name in ("train/a/1.jpg", "train/b/1.jpg", "validation/a/1.jpg"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("never decoded")
    return root


def test_verifying_alone_writes_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    prepare(Request(folder, None))
    assert sorted(folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"there/train: cannot be listed .* is set by --source$"):
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

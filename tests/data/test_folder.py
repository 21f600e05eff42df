"""Image files in folders of classes: what they hold, how they are split, and what is refused."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from tests.conftest import with_data
from tests.data.common import everything, refusal
from tests.photo_files import CLASSES, photo_config
from trainer.data.source import open_source
from trainer.data.splits import folder


def test_a_folder_is_its_files(photo_folder):
    source = open_source(photo_config(), "train", str(photo_folder))
    assert (len(source), source.class_names, source.channels) == (24, CLASSES, 3)
    images, labels = everything(source)
    expected = {
        (path.read_bytes(), CLASSES.index(path.parent.name))
        for path in (photo_folder / "train").glob("*/*")
    }
    assert set(zip(images.tolist(), labels.tolist(), strict=True)) == expected
    described = [Path(source.describe(index)) for index in range(24)]
    assert [path.read_bytes() for path in described] == images.tolist()
    # Neighbours are of mixed classes, so that blocks of them are.
    assert 5 < np.abs(np.diff(labels)).sum() < 20


def test_the_order_of_files_is_not_the_file_systems(photo_folder, tmp_path):
    """A copy, written in another order."""
    for path in sorted(photo_folder.rglob("*.*"), reverse=True):
        target = tmp_path / path.relative_to(photo_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    here, there = (
        everything(open_source(photo_config(), "train", str(root)))[0].tolist()
        for root in (photo_folder, tmp_path)
    )
    assert here == there


def test_one_root_is_split_by_a_hash_that_stays(photo_folder):
    config = photo_config(eval_fraction=0.3, path="train")
    training, held_out = (
        set(everything(open_source(config, split, str(photo_folder)))[0].tolist())
        for split in ("train", "val")
    )
    assert training.isdisjoint(held_out)
    assert training | held_out == {p.read_bytes() for p in (photo_folder / "train").glob("*/*")}
    more = with_data(config, eval_fraction=0.6)
    assert held_out < set(everything(open_source(more, "val", str(photo_folder)))[0].tolist())


def test_the_split_has_the_share_that_was_asked_for():
    digests = [hashlib.sha256(str(n).encode()).digest() for n in range(10_000)]
    share = np.mean([folder._is_held_out(digest, 0.2) for digest in digests])
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 10_000)


def test_a_fraction_that_leaves_nothing_is_said(photo_folder):
    config = photo_config(eval_fraction=1e-9, path="train")
    message = refusal(config, "val", photo_folder)
    assert message.startswith("data.eval_fraction (1e-09): leaves no image for split 'val' of ")


def test_what_is_wrong_with_a_folder_is_said(photo_folder, tmp_path):
    message = refusal(photo_config(path="there"), "train", tmp_path)
    assert "there/train: cannot be listed (No such file or directory); " in message
    assert "; the folder of the data is set by --data_dir and data.path; images must be" in message
    for config in (photo_config(), photo_config(eval_fraction=0.3)):
        message = refusal(config, "train", tmp_path / "nowhere")
        assert "; the folder of the data is set by --data_dir" in message
        assert "data.path" not in message
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
    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "zebra").mkdir()
    assert "has 3 classes: --set model.num_classes=3" in refusal(
        photo_config(on_bad_example="skip"), "train", tmp_path / "photos"
    )
    assert "train/zebra: has no images; fix it" in refusal(three, "train", tmp_path / "photos")


def test_a_class_without_images_or_only_in_evaluation(photo_folder, tmp_path, capsys):
    root = shutil.copytree(photo_folder, tmp_path / "photos")
    shutil.copytree(root / "val" / "china", root / "val" / "zebra")
    message = refusal(photo_config(), "val", root)
    assert f"{root}/val/zebra: a class that {root}/train does not have; fix it" in message
    skipping = open_source(photo_config(on_bad_example="skip"), "val", str(root))
    assert len(skipping) == 10
    assert f"left out: {root}/val/zebra" in capsys.readouterr().out

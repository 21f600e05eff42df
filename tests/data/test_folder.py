"""Image files in folders of classes: what they hold, how they are split, and what is refused."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import encode
from tests.data.common import everything
from tests.photo_files import CLASSES, photo_config
from trainer.config import Config
from trainer.data.source import open_source
from trainer.data.splits.find import find_split
from trainer.data.splits.split import Split
from trainer.errors import UserError


def any_classes(**data) -> Config:
    config = photo_config(**data)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=None))


def found(config: Config, split: str, root: Path) -> Split:
    split_found = find_split(config, split, str(root))
    assert split_found is not None
    return split_found


def files_of(split: Split) -> dict[str, str]:
    """The paths below the split's place, and their class names."""
    paths, labels = split.content
    names = [os.path.relpath(path, split.place) for path in paths]
    return {name: split.class_names[label] for name, label in zip(names, labels, strict=True)}


def refused(config: Config, split: str, root: Path) -> str:
    with pytest.raises(UserError) as error:
        find_split(config, split, str(root))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture(scope="session")
def jpeg(photos) -> bytes:
    return encode(photos[0][:16, :16])


@pytest.fixture
def write(tmp_path, jpeg):
    """Writes the same small JPEG as files of these names, and returns the folder."""

    def write(*names: str, root: Path = tmp_path) -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(jpeg)
        return root

    return write


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


def test_the_order_is_that_of_the_paths_hashes(write):
    names = [f"{c}/{n}.jpg" for c in ("a", "b c", "ü") for n in ("1", "2", "x y", "é", "10")]
    root = write(*(f"train/{name}" for name in names))
    paths, labels = found(any_classes(), "train", root).content
    expected = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert paths == [f"{root}/train/{name}" for name in expected]
    assert labels == [["a", "b c", "ü"].index(name.split("/")[0]) for name in expected]
    # As in version 0.1.0, of which a run may resume.
    assert hashlib.sha256("\n".join(expected).encode()).hexdigest().startswith("8e66ee8367eaecf2")


# --- which files ------------------------------------------------------------------------------


def test_images_below_a_class_folder_are_its_images(write):
    root = write("train/a/1.jpg", "train/a/2024/may/2.JPG", "train/b/x/3.jpe", "train/b/4.jfif")
    split = found(any_classes(), "train", root)
    assert files_of(split) == {
        "a/1.jpg": "a",
        "a/2024/may/2.JPG": "a",
        "b/x/3.jpe": "b",
        "b/4.jfif": "b",
    }
    assert split.class_counts == (2, 2)
    images, _ = everything(open_source(any_classes(), "train", str(root)))
    assert len(images) == 4


def test_links_are_followed_but_not_in_circles(write, tmp_path):
    root = write("train/a/1.jpg", "train/b/2.jpg", "elsewhere/x/3.jpg", "album/4.jpg")
    (root / "train" / "c").symlink_to(root / "elsewhere")
    (root / "train" / "a" / "more").symlink_to(root / "album")
    (root / "train" / "a" / "self").symlink_to(".")
    (root / "train" / "a" / "all").symlink_to("..")
    (root / "train" / "a" / "loop").symlink_to("loop")
    (root / "album" / "back").symlink_to(root / "train" / "a")
    split = found(any_classes(), "train", root)
    assert files_of(split) == {
        "a/1.jpg": "a",
        "a/more/4.jpg": "a",
        "b/2.jpg": "b",
        "c/x/3.jpg": "c",
    }


def test_a_link_to_nothing_is_a_bad_example_not_an_error(write):
    root = write("train/a/1.jpg", "train/b/2.jpg")
    (root / "train" / "a" / "gone.jpg").symlink_to("nowhere")
    assert found(any_classes(), "train", root).num_examples == 3


def test_what_systems_leave_is_neither_class_nor_image_nor_counted(write, capsys):
    folders = ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN"]
    folders += ["System Volume Information", "lost+found", "__pycache__", ".hidden"]
    ours = [f"train/{name}" for name in ("a/1.jpg", "b/2.jpg")]
    root = write(*ours, *(f"train/{name}/x.jpg" for name in folders))
    write(*(f"train/a/{name}/x.jpg" for name in folders))
    write(*(f"train/a/{name}" for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._1.jpg")))
    (root / "train" / "lost+found" / "x.jpg").unlink()  # an empty one
    assert files_of(found(any_classes(), "train", root)) == {"a/1.jpg": "a", "b/2.jpg": "b"}
    assert capsys.readouterr().out == ""


def test_files_that_are_not_read_are_counted_by_ending(write, capsys):
    root = write(
        "train/a/1.jpg", "train/a/2.tif", "train/a/x/3.TIF", "train/b/4.jpg", "train/b/5.heic"
    )
    write("train/a/names.txt", "train/b/README", "train/6.jpg", "val/a/7.jpg", "val/b/8.jpg")
    write("val/b/names.txt")
    found(any_classes(), "train", root)
    advice = "; python -m trainer.prepare converts what Pillow reads"
    assert capsys.readouterr().out.splitlines() == [
        f"{root}/train: 5 files are not read: 2 .tif, 1 .txt, 1 .heic, 1 without an ending{advice}",
        f"{root}/train: 1 image(s) are in no class folder, and are not read",
    ]
    found(any_classes(), "val", root)
    assert capsys.readouterr().out == f"{root}/val: 1 file is not read: 1 .txt\n"
    nothing = refused(any_classes(), "train", write("other/train/a/1.tif").joinpath("other"))
    assert f"*.webp); 1 file is not read: 1 .tif{advice}" in nothing


# --- classes ----------------------------------------------------------------------------------


def test_a_class_folder_without_images_is_an_error_or_no_class(write, capsys):
    root = write(
        "train/a/1.jpg", "train/b/2.jpg", "train/zebra/3.tif", "val/a/4.jpg", "val/b/5.jpg"
    )
    (root / "val" / "zebra").mkdir()
    (root / "train" / "empty").mkdir()
    assert refused(any_classes(), "train", root) == (
        f"{root}/train/empty: has no images (and 1 more); fix it, or leave it out with --set "
        f"data.on_bad_example=skip"
    )
    skip = any_classes(on_bad_example="skip")
    for split in ("train", "val"):
        assert found(skip, split, root).class_names == ("a", "b")
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("left out: ")] == [
        f"left out: {root}/train/empty: has no images",
        f"left out: {root}/train/zebra: has no images: 1 file is not read: 1 .tif",
        f"left out: {root}/val/zebra: has no images",
    ]
    four = dataclasses.replace(skip, model=dataclasses.replace(skip.model, num_classes=4))
    assert refused(four, "train", root) == (
        f"model.num_classes is 4, but {root}/train has 2 classes without what is left out: --set "
        f"model.num_classes=2"
    )


def test_classes_of_one_split_only(write, capsys):
    root = write(*(f"train/{name}/1.jpg" for name in "abcde"), "val/a/2.jpg", "val/c/3.jpg")
    write("val/d/4.jpg")
    assert found(any_classes(), "val", root).class_counts == (1, 0, 1, 1, 0)
    assert capsys.readouterr().out == (
        f"{root}/val: has no images of 2 of 5 classes: b, e; their accuracy is not measured\n"
    )
    write("val/zebra/5.jpg")
    message = refused(any_classes(), "val", root)
    assert f"{root}/val/zebra: a class that {root}/train does not have; fix it" in message
    assert found(any_classes(on_bad_example="skip"), "val", root).num_examples == 3
    assert f"left out: {root}/val/zebra" in capsys.readouterr().out


# --- data.eval_fraction -----------------------------------------------------------------------


def halves(config: Config, root: Path) -> tuple[dict[str, str], dict[str, str]]:
    training, held_out = (files_of(found(config, split, root)) for split in ("train", "val"))
    assert training.keys().isdisjoint(held_out)
    return training, held_out


def test_each_class_is_split_by_its_hashes(write):
    """What is held out is the share of each class with the smallest hashes, on any seed."""
    sizes = {"a": 2, "b": 5, "c": 40, "d": 101}
    names = [f"{name}/{n}.jpg" for name, size in sizes.items() for n in range(size)]
    root = write(*names)
    training, held_out = halves(any_classes(eval_fraction=0.1), root)
    assert training.keys() | held_out.keys() == set(names)
    counts = {name: list(held_out.values()).count(name) for name in sizes}
    assert counts == {"a": 1, "b": 1, "c": 4, "d": 10}

    def by_hash(label: str) -> list[str]:
        own = [name for name in names if name.startswith(f"{label}/")]
        return sorted(own, key=lambda name: hashlib.sha256(name.encode()).digest())

    assert set(held_out) == {name for label in sizes for name in by_hash(label)[: counts[label]]}
    other_seed = dataclasses.replace(any_classes(eval_fraction=0.1), seed=7)
    assert halves(other_seed, root) == (training, held_out)
    _, more = halves(any_classes(eval_fraction=0.6), root)
    assert held_out.keys() < more.keys()
    most, few = halves(any_classes(eval_fraction=0.999), root)
    assert (len(most), len(few)) == (4, len(names) - 4)


def test_of_files_that_are_added_only_few_move(write):
    root = write(*(f"{name}/{n}.jpg" for name in "ab" for n in range(200)))
    _, before = halves(any_classes(eval_fraction=0.2), root)
    write(*(f"a/new-{n}.jpg" for n in range(10)))
    _, after = halves(any_classes(eval_fraction=0.2), root)
    old = {name for name in after if "new" not in name}
    assert len(before.keys() ^ old) <= 10


def test_a_class_of_a_single_image_stays_in_training(write, capsys):
    root = write("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/notes.txt")
    training, held_out = halves(any_classes(eval_fraction=0.3), root)
    assert (list(held_out.values()), sorted(training.values())) == (["a"], ["a", "b"])
    assert capsys.readouterr().out.splitlines() == [  # each once, of two splits of one folder
        f"{root}: 1 file is not read: 1 .txt",
        f"{root}: split 'val' has no images of 1 of 2 classes: b; a class's only image stays in "
        f"training",
    ]
    (root / "a" / "2.jpg").unlink()
    assert refused(any_classes(eval_fraction=0.3), "val", root) == (
        f"data.eval_fraction (0.3): leaves no image for split 'val' of {root}, where each class "
        f"has a single image"
    )


# --- the fingerprint --------------------------------------------------------------------------


def test_a_fingerprint_is_of_names_and_sizes_wherever_they_are(write, tmp_path, jpeg):
    names = ["train/a/1.jpg", "train/a/x/2.jpg", "train/b/3.jpg", "train/b/4.jpg"]
    here, there = write(*names, root=tmp_path / "here"), tmp_path / "there"
    for name in reversed(names):  # written in another order, at another time
        write(name, root=there)
        os.utime(there / name, (0, 0))

    def fingerprint(root: Path = there) -> str:
        return found(any_classes(), "train", root).fingerprint

    seen = {fingerprint(here)}
    assert fingerprint() in seen
    for change in (
        lambda: (there / "train" / "a" / "1.jpg").write_bytes(jpeg + b"\0"),
        lambda: write("train/b/5.jpg", root=there),
        lambda: (there / "train" / "b" / "5.jpg").rename(there / "train" / "b" / "6.jpg"),
        lambda: (there / "train" / "b" / "6.jpg").rename(there / "train" / "a" / "6.jpg"),
        (there / "train" / "b" / "3.jpg").unlink,
    ):
        change()
        assert fingerprint() not in seen
        seen.add(fingerprint())


# --- folders that are not there ---------------------------------------------------------------


def test_a_split_of_another_name_is_suggested(write):
    root = write("train/a/1.jpg", "train/b/2.jpg", ".cache/x.jpg")
    assert refused(any_classes(), "val", root) == (
        f"{root}/val: cannot be listed (No such file or directory); {root} must have the splits "
        f"'train' and 'val', or others that are set with --set data.train_split=… --set "
        f"data.eval_split=…, and these a folder for each class; it has the folders train; the "
        f"folder of the data is set by --data_dir"
    )
    for name in ("test", "valid", "validation"):  # from the last choice to the first
        write(f"{name}/a/1.jpg")
        if name != "validation":
            assert refused(any_classes(), "val", root).endswith(
                f"; {root} has {name}: --set data.eval_split={name}"
            )
    (root / "train").rename(root / "Training")
    assert f"; {root} has Training: --set data.train_split=Training" in refused(
        any_classes(), "train", root
    )


def test_classes_without_splits_are_seen(write):
    root = write("photos/a/1.jpg", "photos/test/2.jpg").joinpath("photos")
    assert refused(any_classes(), "train", root) == (
        f"{root}/train: cannot be listed (No such file or directory); {root} has folders of "
        f"images without splits: --set data.eval_fraction=0.1"
    )
    assert refused(any_classes(eval_split=None), "train", root).endswith(
        f"; {root} has folders of images without splits: name {root.parent} with --data_dir, and "
        f"--set data.train_split=photos"
    )


def test_splits_in_the_place_of_classes_are_seen(write):
    """Images below class folders are theirs, so this would train on the classes train and val."""
    root = write(*(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    assert refused(any_classes(eval_fraction=0.1), "train", root) == (
        f"{root}: has the splits train, val instead of classes: leave out --set data.eval_fraction"
    )
    for split in ("train", "val"):
        assert refused(any_classes(), split, root / "train").endswith(
            f"; {root} has {split}: name that folder with --data_dir"
        )
    write("photos/train/train/a/1.jpg", "photos/train/val/a/1.jpg")
    assert refused(any_classes(), "train", root / "photos") == (
        f"{root}/photos/train: has the splits train, val instead of classes: name this folder "
        f"with --data_dir"
    )


def test_a_root_that_is_not_there(write, tmp_path):
    root = write("photos/train/a/1.jpg", "photos/train/b/1.jpg")
    error = f"{root}/photo/train: cannot be listed (No such file or directory); "
    set_by = "the folder of the data is set by --data_dir"
    assert refused(any_classes(), "train", root / "photo") == (
        f"{error}did you mean {root}/photos? {set_by}"
    )
    assert refused(any_classes(path="photo"), "train", root) == (
        f"{error}did you mean {root}/photos? {set_by} and data.path"
    )
    assert refused(any_classes(), "train", root / "nowhere" / "else").endswith(f"; {set_by}")
    assert refused(any_classes(eval_fraction=0.1), "train", root / "x").endswith(f"; {set_by}")


def test_folders_without_images(tmp_path):
    (tmp_path / "train").mkdir()
    message = "train: has no images in folders of classes (CLASS/*.jpg, "
    assert message in refused(any_classes(), "train", tmp_path)
    (tmp_path / "train" / "a").mkdir()
    assert message in refused(any_classes(), "train", tmp_path)

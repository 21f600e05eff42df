"""What is asked of the data: how many classes with `model.num_classes=none`, and channels."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data, with_model
from tests.photo_files import photo_config, write_photos
from tests.step_runs import StopAfter
from trainer.config import Config, DataConfig, with_num_classes
from trainer.data.preparation import Request, prepare
from trainer.data.source import channels_of, open_source
from trainer.errors import PreemptedError, UserError
from trainer.models.weights.load import read_checkpoint
from trainer.run import train
from trainer.run.folder import RunFolder
from trainer.run.train import train_and_evaluate


def with_classes(config: Config, number: int | None) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=number))


def classes_of(config: Config, data_dir: Path | str) -> int | None:
    config = with_classes(config, None)
    source = open_source(config, config.data.train_split, str(data_dir))
    return with_num_classes(config, source.class_names).model.num_classes


def refusal(config: Config, data_dir: Path | str) -> str:
    with pytest.raises(UserError) as error:
        classes_of(config, data_dir)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """Three classes: two of photos, and a copy of one."""
    root = write_photos(tmp_path_factory.mktemp("photos"), photos, train=4, val=2)
    for split in ("train", "val"):
        shutil.copytree(root / split / "china", root / split / "zebra")
    return root


def save_labels(folder: Path, labels) -> None:
    images = np.zeros((len(labels), 8, 8), np.uint8)
    np.savez(folder / "images.npz", x_train=images, y_train=np.array(labels))


ARRAYS = Config(data=DataConfig(name="arrays", path="images.npz"))


def test_classes_are_as_many_as_the_data_have(folder, data_dir, digits_config, tmp_path):
    assert classes_of(digits_config, data_dir) == 10
    assert classes_of(photo_config(), folder) == 3
    prepare(Request(folder, tmp_path / "records"))
    assert classes_of(photo_config(name="tfrecord"), tmp_path / "records") == 3
    save_labels(tmp_path, [0, 3, 1, 2, 1])
    assert classes_of(ARRAYS, tmp_path) == 4
    digits = open_source(digits_config, "train", data_dir)
    assert with_num_classes(digits_config, digits.class_names) == digits_config


def test_data_that_do_not_know_their_classes_say_what_to_set(folder, tmp_path):
    prepare(Request(folder, tmp_path / "records"))
    (tmp_path / "records" / "manifest.json").unlink()
    advice = "; --set model.num_classes=N gives it"
    assert refusal(photo_config(name="tfrecord"), tmp_path / "records") == (
        f"model.num_classes=none: {tmp_path}/records has no manifest.json with class names{advice}"
    )
    assert refusal(photo_config(name="synthetic", crop="none"), "") == (
        f"model.num_classes=none: synthetic images have no classes{advice}"
    )
    for labels in ([0, 1, 3], [1, 2], [-1, 0, 1]):
        save_labels(tmp_path, labels)
        assert refusal(ARRAYS, tmp_path) == (
            f"model.num_classes=none: the labels of {tmp_path}/images.npz: y_train are not 0, 1, "
            f"2, … without a gap{advice}"
        )


@pytest.mark.parametrize("number", [None, 2])
def test_a_single_class_is_refused(folder, tmp_path, number):
    shutil.copytree(folder / "train" / "china", tmp_path / "train" / "china")
    with pytest.raises(UserError) as error:
        open_source(with_classes(photo_config(), number), "train", str(tmp_path))
    assert str(error.value) == (
        "data set 'folder': has 1 class (china), and training needs at least 2; check --data_dir "
        "and data.path"
    )


def variables(path: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(path / "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("state/")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_a_run_keeps_none_and_computes_with_the_number(
    small_config, data_dir, tmp_path, monkeypatch
):
    """Though it is stopped and resumed; and its model is built from its checkpoint alone."""
    config = with_model(small_config, "linear")
    config = dataclasses.replace(config, num_epochs=0.5, steps_per_loop=2)
    given = {number: with_classes(config, number) for number in (10, None)}

    def run(number: int | None) -> None:
        folder = RunFolder(str(tmp_path / str(number)), given[number])
        train_and_evaluate(given[number], strategy_of(1), folder, data_dir)

    run(10)
    with monkeypatch.context() as patch, pytest.raises(PreemptedError):
        patch.setattr(train, "StopRequest", StopAfter(2))
        run(None)
    run(None)
    expected, found = (variables(tmp_path / str(number)) for number in given)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name])
    saved = json.loads((tmp_path / "None" / "config.json").read_text())
    assert saved["config"]["model.num_classes"] is None
    assert len(saved["class_names"]) == 10
    model = read_checkpoint(tmp_path / "None")
    assert model.config.model.num_classes == 10
    assert model.model(np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 10)


# --- channels ---------------------------------------------------------------------------------

GREY = (0.5,)


@pytest.mark.parametrize(
    ("data", "channels"),
    [
        ({"name": "digits"}, 1),
        ({"name": "digits", "channels": 1}, 1),
        ({"name": "cifar10"}, 3),
        ({"name": "imagenet2012", "channels": 1}, 3),
        ({"name": "tfds", "path": "mnist"}, 1),
        ({"name": "tfds", "path": "mnist:3.*.*"}, 1),
        ({"name": "tfds", "path": "no_such_thing", "channels": 1}, 1),
        ({"name": "folder"}, 3),
        ({"name": "folder", "channels": 1}, 1),
        ({"name": "tfrecord", "channels": 1}, 1),
        ({"name": "arrays", "channels": 1}, 1),
        ({"name": "synthetic", "channels": 1}, 1),
    ],
)
def test_channels_are_asked_of_the_source_without_its_data(data, channels):
    assert channels_of(Config(data=DataConfig(mean=GREY, std=GREY, **data))) == channels


def test_channels_are_those_of_the_opened_source(digits_config, data_dir, folder):
    colours = photo_config()
    for config, root in (
        (digits_config, data_dir),
        (colours, folder),
        (with_data(colours, channels=1, mean=GREY, std=GREY), folder),
        (with_data(colours, name="synthetic", crop="none"), ""),
    ):
        any_number = with_classes(config, None) if root == folder else config
        source = open_source(any_number, config.data.train_split, str(root))
        assert channels_of(config) == source.channels


def test_a_mean_for_other_channels_is_refused():
    config = Config(data=DataConfig(name="digits", mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(
        UserError, match="have 3 values, but the images of data set 'digits' have 1"
    ):
        channels_of(config)

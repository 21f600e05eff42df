"""A source of the user's own: a module that `data.name` names, and its mistakes."""

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data, with_model
from trainer.config import Config, with_num_classes
from trainer.data.pipeline import train_dataset
from trainer.data.source import channels_of, open_source
from trainer.errors import UserError
from trainer.run.folder import RunFolder
from trainer.run.log import read_records
from trainer.run.train import train_and_evaluate

RECIPE = """\
import tensorflow as tf


class Squares:
    class_names = ("small", "large")
    image_shape = (8, 8, 1)
    channels = 1
    in_graph = True

    def __len__(self):
        return 10

    def describe(self, index):
        return f"square {index}"

    def fetch(self, indices):
        large = indices % 2 == 1
        size = tf.where(large, 6, 2)[:, None]
        on = tf.cast(tf.range(8)[None] < size, tf.uint8) * 255
        return (on[:, :, None] * (on[:, None] // 255))[..., None], tf.cast(large, tf.int32)


def open_source(config, split, data_dir):
    return Squares()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes my_data/reader.py, which Python finds."""
    (tmp_path / "my_data").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> Path:
        for name in ("my_data", "my_data.reader"):
            sys.modules.pop(name, None)
        (tmp_path / "my_data" / "reader.py").write_text(text)
        importlib.invalidate_caches()
        return tmp_path / "my_data" / "reader.py"

    yield write
    for name in ("my_data", "my_data.reader"):
        sys.modules.pop(name, None)


@pytest.fixture
def config(small_config, write) -> Config:
    """The config of a run on that module, which must exist when the config names it."""
    write(RECIPE)
    config = with_model(small_config, "linear")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=None))
    return with_data(config, name="my_data.reader", crop="none", pad=0, global_batch_size=5)


def test_batches_are_those_of_a_module_of_ones_own(config):
    source = open_source(config, "train", "")
    config = with_num_classes(config, source.class_names)
    batches = list(train_dataset(config, source, 0, tf.distribute.InputContext()).take(4))
    for images, labels in batches:
        assert images.shape == (5, 8, 8, 1)
        np.testing.assert_array_equal(np.count_nonzero(images, (1, 2, 3)), np.where(labels, 36, 4))
    assert set(np.concatenate([labels for _, labels in batches])) == {0, 1}


def test_two_steps_are_trained_on_a_module_of_ones_own(config, tmp_path):
    run = RunFolder(str(tmp_path / "run"), config)
    train_and_evaluate(dataclasses.replace(config, num_epochs=1.0), strategy_of(1), run, "")
    records = read_records(run.metrics, "train")
    assert [record["step"] for record in records] == [1, 2]
    assert all(np.isfinite(record["loss"]) for record in records)
    saved = run.read_config()
    assert saved["class_names"] == ["small", "large"]
    assert saved["config"]["model.num_classes"] is None


# Labels from Python, wrong for example 7.
LABELS_FROM_PYTHON = """

class Python(Squares):
    in_graph = False

    def fetch(self, indices):
        images, labels = super().fetch(indices)
        labels = tf.numpy_function(self.check, [indices, labels], tf.int32)
        return images, tf.ensure_shape(labels, indices.shape)

    def check(self, indices, labels):
        if 7 in indices:
            WRONG
        return labels


def open_source(config, split, data_dir):
    return Python()
"""


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("raise KeyError('no row')", "{path}, line 37: KeyError: 'no row'"),
        pytest.param(
            "return labels.astype('int64')",
            "0-th value returned by pyfunc_",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_example_that_fails_in_python_is_named_or_skipped(
    config, write, tmp_path, wrong, reason
):
    reason = reason.format(path=write(RECIPE + LABELS_FROM_PYTHON.replace("WRONG", wrong)))
    config = dataclasses.replace(config, num_epochs=1.0)
    workdir = str(tmp_path / "run")
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, strategy_of(1), RunFolder(workdir, config), "")
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("bad example: square 7: ")
    assert reason in message
    del error  # and the folder's lock with it

    skipping = with_data(config, on_bad_example="skip")
    train_and_evaluate(skipping, strategy_of(1), RunFolder(workdir, skipping), "")
    (line,) = (tmp_path / "run" / "bad_examples.txt").read_text().splitlines()
    assert line.startswith("square 7\t")
    assert reason in line


def edited(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new)


SHAPES = "it must return images, uint8 [2, 8, 8, 1], and labels, int32 [2]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_module\n",
            "line 1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("import tensorflow\n\ndef broken(:\n", "line 3: SyntaxError: invalid syntax"),
        ("", " has no open_source(config, split, data_dir); define one that returns a Source"),
        (
            edited("return Squares()", "return open(data_dir + '/list.csv')"),
            "line 24: FileNotFoundError: [Errno 2] No such file or directory: '/list.csv'",
        ),
        (
            edited("    return Squares()", "    Squares()"),
            "line 23: open_source returned a NoneType without class_names, image_shape, channels, "
            "in_graph, __len__, describe, fetch; it must return a Source",
        ),
        (
            edited("    in_graph = True\n", ""),
            "line 22: open_source returned a Squares without in_graph; it must return a Source",
        ),
        (edited("channels = 1", "channels = 2"), "line 4: Squares.channels must be 1 or 3, not 2"),
        (
            edited('("small", "large")', '"sl"'),
            "line 4: Squares.class_names must be a tuple of texts, not 'sl'",
        ),
        (
            edited("(8, 8, 1)", "(8, 8)"),
            "line 4: Squares.image_shape must be (height, width, 1), or None for encoded images, "
            "not (8, 8)",
        ),
        (edited("in_graph = True", "in_graph = 1"), "in_graph must be True or False, not 1"),
        (edited("in_graph = True", "in_graph, fingerprint = True, 1"), "fingerprint must be text"),
        (edited('return f"square {index}"', "return index"), "describe must return text, not 0"),
        (
            edited("// 255))[..., None]", "// 255))"),
            "line 4: Squares.fetch returned images that are uint8 [2, 8, 8] for 2 indices; "
            + SHAPES,
        ),
        (
            edited("tf.cast(large, tf.int32)", "tf.cast(large, tf.int64)"),
            f"line 4: Squares.fetch returned labels that are int64 [2] for 2 indices; {SHAPES}",
        ),
        (
            edited("tf.cast(large, tf.int32)", "tf.numpy_function(abs, [indices], tf.int32)"),
            "line 4: Squares.fetch returned labels that are int32 of unknown shape for 2 indices; "
            f"{SHAPES}; tf.ensure_shape gives a tensor its shape",
        ),
        (
            edited(
                "return (on[:, :, None]", "return {'image': on}, large\n        (on[:, :, None]"
            ),
            f"fetch returned images that are a dict for 2 indices; {SHAPES}",
        ),
        (
            edited("        large = indices % 2 == 1\n", "        return indices\n"),
            f"line 4: Squares.fetch returned int64 [2] for 2 indices; {SHAPES}",
        ),
        (
            edited("tf.range(8)[None] < size", "tf.range(7)[None] < indices"),
            "line 19: TypeError: Input 'y' of 'Less' Op has type int64",
        ),
        (edited("return 10", "return 0"), "data set 'my_data.reader': has no examples"),
        (
            edited('("small", "large")', '("small",)'),
            "data set 'my_data.reader': has 1 class (small), and training needs at least 2",
        ),
    ],
)
def test_a_mistake_in_the_module_is_one_line_with_its_place(config, write, text, message):
    path = write(text)
    with pytest.raises(UserError) as error:
        open_source(config, "train", "")
    found = str(error.value)
    assert len(found.splitlines()) == 1
    assert message in found
    if not message.startswith("data set"):
        assert found.startswith(f"data.name (my_data.reader): {path}")


def test_its_channels_are_asked_of_it(config, write):
    assert channels_of(with_data(config, channels=3)) == 3  # it has no function for them
    write(RECIPE + "\n\ndef channels(config):\n    return 1\n")
    assert channels_of(with_data(config, channels=3)) == 1
    write(RECIPE + "\n\ndef channels(config):\n    return 2\n")
    with pytest.raises(UserError, match=r"'?my_data.reader'?.*2 channels, not 1 or 3"):
        channels_of(config)
    path = write(RECIPE + "\n\ndef channels(config):\n    return config.chanels\n")
    with pytest.raises(UserError, match=rf"{path}, line 28: AttributeError: .*; fix the module"):
        channels_of(config)

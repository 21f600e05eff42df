"""A loaded head's rows go to the classes of the same names."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of
from tests.small_models import CONVNET
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.weights import tensor_file
from trainer.models.weights.heads import match_classes
from trainer.models.weights.load import load_weights
from trainer.models.weights.names import torch_tensors
from trainer.models.weights.saved import read_checkpoint
from trainer.run.agreement import Agreement
from trainer.run.initial_weights import load_initial_weights
from trainer.step.state import TrainState

PETS = ("ants", "bees", "cats", "dogs")
IMAGES = tf.random.stateless_normal([5, 8, 8, 3], [1, 2])


def numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@pytest.mark.parametrize(
    ("ours", "theirs", "rows", "report"),
    [
        ("b a c", "a b c", (1, 0, 2), "the same 3 classes in another order, reordered by name (b,"),
        ("a b c", "a b c", (0, 1, 2), "the same 3 classes (a, b, c)"),
        ("b x", "a b c", (1, -1), "1 of 2 classes by name (b), from scratch: x"),
        ("b a", "a b c", (1, 0), "2 of 2 classes by name (b, a)"),
        ("a b c", "b", (-1, 0, -1), "1 of 3 classes by name (b), from scratch: a, c"),
        ("x y", "a b", (-1, -1), "from scratch, since none of the weights' classes (a, b) is one "
         "of these (x, y)"),
        ("a b", "", None, "2 classes by number, since the weights have no class names"),
        ("a b", "0 1", None, "2 classes by number, since the weights have no class names"),
        ("0 1", "a b", None, "2 classes by number, since these data have no class names"),
        ("0 1", "0 1", None, "by number, since the weights and these data have no class names"),
        # Digits in folders, whose names are sorted as texts, and the same in files of numbers.
        ("0 1 10 2 3 4 5 6 7 8 9", "0 1 2 3 4 5 6 7 8 9 10", (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9),
         "reordered by name"),
        ("1 2 3", "0 1 2", None, "by number, since the weights have no class names"),
        ("5 7", "7 5 3", (1, 0), "2 of 2 classes by name"),
        # Two cranes, as in ImageNet: which of them is meant?
        ("crane a", "crane crane a", (-1, 2), "1 of 2 classes by name (a), from scratch: crane"),
        ("crane crane", "crane crane", (0, 1), "the same 2 classes"),
        ("a b c d e f", "f e d c b a", (5, 4, 3, 2, 1, 0), "(a, b, c, d, e, …)"),
    ],
)  # fmt: skip
def test_classes_are_matched_by_name(ours, theirs, rows, report):
    match = match_classes(ours.split(), theirs.split())
    assert match.rows == rows
    assert report in match.report
    assert match.is_same == (rows is not None and ours == theirs)


def config(name: str, num_classes: int, path: Path | None = None) -> Config:
    settings = [f"model.name={name}", f"model.num_classes={num_classes}", "data.image_size=8"]
    return config_lib.override(Config(), settings + [f"model.weights={path}"] * bool(path))


def trained(name: str, classes: tuple[str, ...], path: Path, names=None) -> tf.Tensor:
    """Writes what a run of these classes exports, and returns its logits."""
    run = dataclasses.replace(config(name, len(classes)), seed=7)
    model = build_model(run, channels=3)
    for variable in model.get_layer("head").variables:  # a bias starts at 0
        variable.assign(tf.random.stateless_normal(variable.shape, [3, 4]))
    metadata = {
        "config": config_lib.to_dict(run),
        "class_names": classes if names is None else names,
        "channels": 3,
    }
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    tensor_file.write(path, torch_tensors(name, model), texts)
    return model(IMAGES, training=False)


def loaded(name: str, classes: tuple[str, ...], path: Path) -> tuple[tf.Tensor, tf.Tensor, str]:
    """Returns the logits with the loaded weights and with their initial head, and the report."""
    loading = config(name, len(classes), path)
    model, initial = build_model(loading, channels=3), build_model(loading, channels=3)
    report = load_weights(loading, model, classes)
    for ours, theirs in zip(initial.variables, model.variables, strict=True):
        if not ours.name.startswith("head"):
            ours.assign(theirs)
    return model(IMAGES, training=False), initial(IMAGES, training=False), report


_OWN_HEAD = """
import tensorflow as tf
import tf_keras
from tf_keras import layers

class Logits(layers.Layer):
    def call(self, x):
        return tf.reduce_mean(x, [1, 2])

def build(config):
    return tf_keras.Sequential([
        layers.Conv2D(6, 3, name="stage1_conv"),
        {head},
    ])
"""
_CONVOLUTION = (
    'layers.Conv2D(config.num_classes, 1, dtype="float32", name="head"), Logits(name="pool")'
)
_TWO_LAYERS = (
    'layers.Flatten(), tf_keras.Sequential([layers.Dense(config.num_classes, "relu", name="a"), '
    'layers.Dense(config.num_classes, name="b")], name="head")'
)


@pytest.fixture
def own_head(tmp_path, monkeypatch):
    """Writes a module with a model that has this head, and returns its name."""

    def write(head: str, name: str) -> str:
        monkeypatch.syspath_prepend(tmp_path)
        folder = tmp_path / "own_heads"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(_OWN_HEAD.replace("{head}", head))
        return f"own_heads.{name}"

    return write


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_logits_follow_the_classes(own_head, tmp_path, kind):
    name = CONVNET if kind == "dense" else own_head(_CONVOLUTION, "convolution")
    path = tmp_path / "run.safetensors"
    theirs = trained(name, PETS, path).numpy()

    logits, _, report = loaded(name, ("dogs", "ants", "cats", "bees"), path)
    np.testing.assert_allclose(logits, theirs[:, [3, 0, 2, 1]], rtol=1e-5, atol=1e-6)
    assert "in another order, reordered by name (dogs, ants, cats, bees)" in report
    assert "6 of 6 tensors" in report or "4 of 4 tensors" in report

    logits, initial, report = loaded(name, ("bees", "wasps", "ants"), path)
    expected = np.stack([theirs[:, 1], initial[:, 1], theirs[:, 0]], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert "head: 2 of 3 classes by name (bees, ants), from scratch: wasps" in report

    logits, initial, report = loaded(name, ("oak", "elm", "ash", "fir"), path)
    np.testing.assert_array_equal(logits, initial)
    assert "starting from scratch: head.weight, head.bias; head: from scratch, since none" in report

    logits, _, report = loaded(name, numbers(4), path)
    np.testing.assert_array_equal(logits, theirs)
    assert "head: 4 classes by number, since these data have no class names" in report

    logits, initial, report = loaded(name, numbers(3), path)
    np.testing.assert_array_equal(logits, initial)
    assert "head.weight is for 4 classes, not 3" in report
    assert "by number" not in report


def test_a_head_of_several_layers_is_taken_whole_or_not_at_all(own_head, tmp_path):
    """Its first layer has as many rows as there are classes, and they are not the classes."""
    name = own_head(_TWO_LAYERS, "two_layers")
    path = tmp_path / "run.safetensors"
    theirs = trained(name, PETS, path)
    logits, _, _ = loaded(name, PETS, path)
    np.testing.assert_array_equal(logits, theirs)
    for classes in (PETS[::-1], PETS[:3]):
        logits, initial, report = loaded(name, classes, path)
        np.testing.assert_array_equal(logits, initial)
        assert "head: from scratch, since its classes differ, and it is not one layer" in report


def test_a_file_whose_names_are_not_those_of_its_head_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    trained(CONVNET, PETS, path, names=PETS[:3])
    with pytest.raises(UserError, match=r"head\.\w+ is 4.*, and its file names 3 classes"):
        loaded(CONVNET, PETS, path)


def test_the_moving_average_gets_the_same_head(run_folder, small_config):
    """From a run's folder: the digits as folders would name them, in another order."""
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    loading = config_lib.override(small_config, [f"model.weights={run_folder}"])
    state = TrainState(loading, channels=1)
    report = load_initial_weights(
        loading, list(map(str, order)), state, Agreement(strategy_of(1)), True
    )
    assert "reordered by name (3, 1, 4, 0, 5, …)" in report
    best = read_checkpoint(run_folder).model
    images = tf.random.stateless_normal([4, 8, 8, 1], [1, 2])
    expected = best(images, training=False).numpy()[:, order]
    average = state.ema_model
    assert average is not None
    for model in (state.model, average):
        np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-5, atol=1e-6)


def test_another_mean_or_deviation_is_reported(tmp_path):
    path = tmp_path / "run.safetensors"
    trained(CONVNET, PETS, path)
    model = build_model(config(CONVNET, 4), channels=3)
    reports = [
        load_weights(config_lib.override(config(CONVNET, 4, path), settings), model, PETS)
        for settings in (
            ["data.mean=0.5", "data.std=0.2"],
            ["data.mean=0.5,0.5,0.5", "data.std=0.5,0.5,0.5"],
            [],
        )
    ]
    was, now = "data.mean=0.5 and data.std=0.5", "data.mean=0.5 and data.std=0.2"
    assert reports[0].endswith(f"; warning: they were trained with {was}, and here are {now}")
    assert "warning" not in reports[1] + reports[2]

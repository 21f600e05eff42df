"""Fixtures. Tests that don't start processes share one TensorFlow with four logical CPU devices."""

import dataclasses
import functools
import io
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.small_models import FAMILIES
from tests.verb_runs import write_stubs
from trainer import config as config_lib
from trainer.data.source import Source, open_source

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


_ROOT = Path(__file__).parents[1]
RECIPE = "my_models.tinynet"  # the docs' example of a user's own model


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Run the model checks on this one: a name, or a module. May be repeated."
    parser.addoption("--model", action="append", default=[], help=text)


def pytest_configure(config: pytest.Config) -> None:
    text = "slow_except(names): slow for every `any_model` except these"
    config.addinivalue_line("markers", text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives `any_model` the models of --model, or one of each family and the docs' recipe."""
    if "any_model" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--model")
    slow = metafunc.definition.get_closest_marker("slow_except")
    metafunc.parametrize(
        "any_model",
        [
            pytest.param(name, marks=pytest.mark.slow)
            if slow and not chosen and name not in slow.args
            else name
            for name in chosen or [*FAMILIES, RECIPE]
        ],
        indirect=True,
    )


@pytest.fixture
def any_model(request: pytest.FixtureRequest, recipe_folder: Path, monkeypatch) -> str:
    """The name of a model that can be built."""
    if request.param == RECIPE and not request.config.getoption("--model"):
        monkeypatch.syspath_prepend(recipe_folder)
    return request.param


@pytest.fixture(scope="session")
def recipe_folder(tmp_path_factory) -> Path:
    """A folder with the docs' model, in the file that its first line names."""
    texts = [path.read_text() for path in (_ROOT / "README.md", *(_ROOT / "docs").glob("*.md"))]
    file = f"{RECIPE.replace('.', '/')}.py"
    pattern = rf'^```python\n("""{re.escape(file)}""".*?)^```'
    (code,) = re.findall(pattern, "".join(texts), re.DOTALL | re.MULTILINE)
    path = tmp_path_factory.mktemp("recipe") / file
    path.parent.mkdir()
    path.write_text(code)
    return path.parents[1]


@functools.cache
def strategy_of(num_replicas: int) -> tf.distribute.Strategy:
    """Returns one device, or a mirrored strategy over this many logical CPU devices.

    There is one strategy of each size: in a process, a group of devices keeps its size, by key.
    """
    if num_replicas == 1:
        return tf.distribute.OneDeviceStrategy("/CPU:0")
    tf.distribute.MirroredStrategy._collective_key_base = 100_000 * num_replicas
    return tf.distribute.MirroredStrategy([f"/CPU:{index}" for index in range(num_replicas)])


@functools.cache
def _compiles_for_cpus() -> bool:
    try:
        tf.function(tf.negative, jit_compile=True)(1.0)
    except tf.errors.NotFoundError:
        return False
    return True


def skip_without_xla() -> None:
    """Skips the test without XLA for CPUs, which tensorflow-tpu lacks."""
    if not _compiles_for_cpus():
        pytest.skip("XLA of this TensorFlow does not compile for a CPU")


@pytest.fixture
def xla() -> None:
    """For tests that need XLA."""
    skip_without_xla()


@pytest.fixture(scope="session")
def stubs(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH, in which importing TensorFlow ends the process."""
    return write_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A folder with the prepared digits."""
    folder = str(tmp_path_factory.mktemp("data"))
    open_source(config_lib.Config(), "train", folder)
    return folder


@pytest.fixture(scope="session")
def digits_config() -> config_lib.Config:
    """The default recipe."""
    return config_lib.load("configs/digits_resnet20.py")


@pytest.fixture(scope="session")
def small_config(digits_config) -> config_lib.Config:
    """The default recipe with a smaller net and image, and a moving average."""
    config = with_data(with_model(digits_config, "resnet8"), image_size=8)
    return dataclasses.replace(config, ema_decay=0.9)


@pytest.fixture(scope="session")
def digits(data_dir, digits_config) -> Source:
    return open_source(digits_config, "train", data_dir)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """scikit-learn's two photos, uint8 `[427, 640, 3]`."""
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def encode(image: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    """Encodes an image with Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} | options))
    return buffer.getvalue()


def with_model(config: config_lib.Config, name: str) -> config_lib.Config:
    """Returns the config with a model of tests/small_models."""
    model = dataclasses.replace(config.model, name=f"tests.small_models.{name}")
    return dataclasses.replace(config, model=model)


def with_data(config: config_lib.Config, **changes) -> config_lib.Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def with_optimizer(config: config_lib.Config, **changes) -> config_lib.Config:
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **changes))

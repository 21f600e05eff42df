"""A user's own model: its mistakes are one line that names the module, file and line."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import RECIPE
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model

# Each case has a separate package, because Python keeps imported modules.
_numbers = itertools.count()

MODEL = """\
import tf_keras
from tf_keras import layers

class Model(tf_keras.Model):
    def __init__(self, config):
        super().__init__(name="mine")
        self.flatten = layers.Flatten()
        self.body = layers.Dense(4, name="BODY")
        self.head = layers.Dense(config.num_classes, name="HEAD")

    def call(self, images, training=False):
        x = self.flatten(images)
        return self.head(self.body(x))

build = Model
"""
GOOD = MODEL.replace("BODY", "stage1_dense").replace("HEAD", "head")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Returns a function that builds the model of a module's text, `mine` in a separate package."""

    def call(text: str, *settings: str, **others: str):
        package = f"package{next(_numbers)}"
        folder = tmp_path / package
        folder.mkdir()
        for name, content in {"mine": text, **others}.items():
            (folder / f"{name}.py").write_text(content.replace("PACKAGE", package))
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        name = f"{package}.mine"
        constants = [f"model.name={name}", "data.image_size=8"]
        config = config_lib.override(Config(), [*constants, *settings])
        try:
            return build_model(config, channels=1)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            raise UserError(str(error).replace(name, "NAME").replace(package, "PACKAGE")) from None

    return call


def test_a_module_s_model_is_built(build):
    assert build(GOOD).name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "PACKAGE/mine.py, line 1: ModuleNotFoundError: No module"),
        ("x = 1\n\ndef build(:", "PACKAGE/mine.py, line 3: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(1)", "PACKAGE/mine.py, line 2: SystemExit: 1"),
        ("x = 1", "PACKAGE/mine.py has no build(config); define one that returns a tf_keras.Model"),
        ("build = 1", "(NAME): PACKAGE/mine.py has no build(config)"),
        ("def build():\n    pass", "model.name (NAME): TypeError: build() takes 0 positional"),
        (
            "def build(config):\n    return config.classes",
            "PACKAGE/mine.py, line 2: AttributeError: 'ModelConfig' object has no attribute",
        ),
        (
            "\ndef build(config):\n    return 3",
            "PACKAGE/mine.py, line 2: build(config) returned a builtins.int; it must return a "
            "tf_keras.Model",
        ),
        (
            GOOD.replace("(x)", "(x[:, :, 0])"),
            "PACKAGE/mine.py, line 13: ValueError: Index out of range using input dim 2",
        ),
        (GOOD.replace("(x)", "(unknown)"), "PACKAGE/mine.py, line 13: NameError: name 'unknown'"),
        (
            MODEL.replace("BODY", "stage1_dense").replace("HEAD", "logits"),
            "PACKAGE/mine.py, line 4: no layer is called 'head'; give that name to the layer",
        ),
        (
            MODEL.replace("BODY", "dense").replace("HEAD", "head"),
            "PACKAGE/mine.py, line 4: layer 'dense' belongs to no stage; start its name with stem, "
            "stage1, stage2, … or head, such as 'stage1_dense'",
        ),
        (
            MODEL.replace("BODY", "head").replace("HEAD", "head"),
            "PACKAGE/mine.py, line 4: 2 layers are called 'head'; give each its own name",
        ),
        (
            GOOD.replace("config.num_classes", "config.num_classes + 1"),
            "PACKAGE/mine.py, line 4: the model returned float32 [2, 11] for 2 images; it must "
            "return logits, float32 [2, 10], one for each class",
        ),
        (
            GOOD.replace("(self.body(x))", "(self.body(images))"),
            "the model returned float32 [2, 8, 8, 10] for 2 images; it must return logits",
        ),
        (
            GOOD.replace("return self.head(self.body(x))", "return {'logits': self.head(x)}"),
            "the model returned a dict for 2 images; it must return logits",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(build, text, message):
    with pytest.raises(UserError) as caught:
        build(text)
    assert str(caught.value).startswith("model.name (NAME): ")
    assert message in str(caught.value)


def test_logits_in_half_precision_are_refused(build):
    with pytest.raises(UserError) as caught:
        build(GOOD, "precision=mixed_bfloat16")
    assert str(caught.value).endswith(
        "the model returned bfloat16 [2, 10] for 2 images; it must return logits, float32 [2, 10], "
        "one for each class; give the head dtype='float32', which holds in any precision"
    )


def test_the_place_is_in_the_package_s_file_that_fails(build):
    with pytest.raises(UserError) as caught:
        build(f"from PACKAGE import blocks\n{GOOD}", blocks="\n\nwidth = 1 / 0")
    expected = "model.name (NAME): PACKAGE/blocks.py, line 3: ZeroDivisionError: division by zero"
    assert str(caught.value).startswith(expected)


def test_a_setting_that_it_does_not_list_is_refused(recipe_folder, monkeypatch):
    monkeypatch.syspath_prepend(recipe_folder)
    config = config_lib.override(Config(), [f"model.name={RECIPE}", "model.dropout=0.1"])
    with pytest.raises(UserError, match=r"model.dropout \(0.1\): my_models.tinynet does not"):
        build_model(config, channels=1)


def test_the_command_reports_it_without_a_traceback(tmp_path):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "mine.py").write_text("raise RuntimeError('not today')")
    command = [sys.executable, "-m", "trainer.inspect", "--model=my_models.mine"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(
        "error: model.name (my_models.mine): my_models/mine.py, line 1: RuntimeError: not today"
    )
    assert "Traceback" not in done.stderr

"""`python -m trainer.inspect`: its output and its errors."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import encode
from tests.small_models import TINY_RESNET, TINY_VGG
from tests.verb_runs import only_line, run_main
from trainer import config as config_lib
from trainer import inspect
from trainer.config import Config
from trainer.data.images import decode_eval
from trainer.errors import UserError
from trainer.insight import tables
from trainer.models.weights.saved import read_checkpoint
from trainer.run.checkpoint import Checkpoints
from trainer.run.folder import RunFolder
from trainer.step.state import TrainState

PHOTOS = Path("configs/photos_resnet18.py").absolute()


@pytest.fixture
def run(capsys):
    """Runs the command and returns its output on stdout and stderr."""

    def call(*arguments: str) -> tuple[str, str]:
        inspect.FLAGS.unparse_flags()
        inspect.FLAGS(["inspect", *inspect._joined(list(arguments))])
        assert inspect.inspect() == 0
        output = capsys.readouterr()
        return output.out, output.err

    return call


def test_three_formats_show_the_same_numbers(run):
    arguments = ("--model=resnet18", "--image_size=64", "--memory_gib=4")
    content = json.loads(run(*arguments, "--format=json")[0])
    assert content["model"] == "resnet18"
    assert content["total"]["parameters"] == 11_689_512
    assert content["num_classes"] == 1000
    fits = content["training_memory_estimate"]
    assert all(one["batch_that_fits"] > 100 for one in fits.values())
    table, markdown = run(*arguments)[0], run(*arguments, "--format=md")[0]
    for text in (table, markdown):
        for row in content["rows"]:
            # The last one: a stage of one layer may have that layer's name.
            words = [line.replace("|", " ").split() for line in text.splitlines()]
            line = [line for line in words if line[:1] == [row["name"]]][-1]
            assert "x".join(map(str, row["output"])) in line
            assert f"{row['parameters']:,}" in line
        assert f"float32: {fits['float32']['batch_that_fits']:,} images at a time" in text
        assert "estimate" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(("data", "channels"), [("digits", 1), ("cifar10", 3), ("folder", 3)])
def test_channels_are_those_of_the_data_set(run, tmp_path, data, channels):
    """With one mean for all channels, from which their number cannot be guessed."""
    settings = (f"--set=data.name={data}", "--image_size=8")
    arguments = ("--config=configs/digits_resnet20.py", *settings, "--format=json")
    assert json.loads(run(*arguments)[0])["channels"] == channels
    assert json.loads(run(*arguments, "--channels=1")[0])["channels"] == 1


def test_two_models_side_by_side(run):
    out, _ = run("--diff", "resnet18", "resnet18d", "--image_size=64", "--format=md")
    assert "A: resnet18, B: resnet18d" in out
    lines = out.splitlines()
    for title, parameters in (
        *(("stem A", "9,536"), ("stem B", "28,768")),
        *(("total A", "11,689,512"), ("total B", "11,708,744")),
    ):
        line = next(line for line in lines if line.startswith(f"| {title} "))
        assert f"| {parameters} |" in line
    both = json.loads(
        run(
            "--diff",
            TINY_RESNET,
            TINY_VGG,
            "--image_size=32",
            "--format=json",
        )[0]
    )
    assert [model["model"] for model in both["models"]] == [
        TINY_RESNET,
        TINY_VGG,
    ]
    for model in both["models"]:
        assert model["training_memory_estimate"]["float32"]["batch_that_fits"] > 0


@pytest.mark.parametrize("arguments", [("--model=resnet18",), ("--diff", "resnet18", "seresnet18")])
def test_a_terminal_of_88_columns_shows_every_name_and_number(run, monkeypatch, arguments):
    monkeypatch.setattr(tables, "_WIDTH", tables._LEAST)
    out, _ = run(*arguments, "--image_size=32")
    assert "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= tables._LEAST + 12  # a note


def test_a_config_s_model_is_the_one_that_training_builds(run):
    content = json.loads(run("--config=configs/digits_resnet20.py", "--format=json")[0])
    assert content["total"]["parameters"] == 272_186  # for one channel, as `make train` reports


def test_an_image_is_shown_without_weights(run, photo, tmp_path):
    out = tmp_path / "maps.png"
    arguments = (f"--image={photo}", "--model=resnet18", "--image_size=64", f"--picture={out}")
    text, notes = run(*arguments)
    assert "stage4" in text
    assert "weights are random" in notes
    picture = Image.open(io.BytesIO(out.read_bytes()))
    assert picture.size == (8 * 116, 5 * 116)  # stem and four stages
    content = json.loads(run(*arguments, "--format=json", "--channels=1")[0])
    assert content["stages"]["stage4"]["output"] == [2, 2, 512]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's folder, as of a training of three classes with settings that no default has."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        "model.name": TINY_RESNET,
        "model.num_classes": "none",
        "data.image_size": "24",
        "data.eval_crop_ratio": "0.5",
        "data.mean": "0.2",
        "data.std": "0.3",
    }
    config = config_lib.override(Config(), [f"{path}={text}" for path, text in settings.items()])
    metadata = {
        "config": config_lib.to_dict(config),
        "class_names": ["a", "b", "c"],
        "train_examples": 1,
        "channels": 1,
    }
    RunFolder(str(folder), config).write_config(metadata)
    state = TrainState(config_lib.with_num_classes(config, "abc"), channels=1)
    for variable in state.model.variables:
        variable.assign(tf.random.stateless_uniform(variable.shape, [1, 2]))
    Checkpoints(folder / "checkpoints", state, metadata, 1, is_chief=True).save(0)
    return folder


@pytest.fixture
def photo(photos, tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(photos[0]))
    return path


def test_a_run_is_inspected_as_it_was_trained(run, trained, photo, tmp_path):
    """Except for what the command gives; also from a checkpoint outside a run's folder."""
    saved = read_checkpoint(trained)
    decoded = decode_eval(tf.constant(photo.read_bytes()), saved.config, 1)
    lone = tmp_path / "lone"
    shutil.copytree(trained / "checkpoints", lone)
    for path, mean, settings in ((trained, 0.2, []), (lone, 0.4, ["--set=data.mean=0.4"])):
        picture = f"--picture={tmp_path}/maps.png"
        weights = f"--set=model.weights={path}"
        out, notes = run(f"--image={photo}", weights, "--format=json", picture, *settings)
        logits = saved.model((tf.cast(decoded[None], tf.float32) / 255 - mean) / 0.3)
        found = json.loads(out)["stages"]["head"]
        assert found["output"] == [3]
        assert found["mean"] == pytest.approx(np.mean(logits), rel=1e-4)
        as_trained, loaded, _ = notes.splitlines()
        shown = "" if settings else ", data.mean=0.2"
        assert re.fullmatch(
            rf"as {path}\S* was trained: model.name={TINY_RESNET}, model.num_classes=3, "
            rf"data.image_size=24, data.eval_crop_ratio=0.5{shown}, data.std=0.3",
            as_trained,
        )
        assert "head: the same 3 classes (a, b, c)" in loaded
        assert ("warning: they were trained with data.mean=0.2" in loaded) == bool(settings)


def test_the_classes_of_a_config_without_a_number_are_the_run_s(run, trained, photo, tmp_path):
    arguments = (f"--config={PHOTOS}", f"--set=model.name={TINY_RESNET}", "--image_size=24")
    picture = f"--picture={tmp_path}/maps.png"
    weights = f"--set=model.weights={trained}"
    out, notes = run(*arguments, weights, f"--image={photo}", picture, "--format=json")
    assert json.loads(out)["stages"]["head"]["output"] == [3]
    assert "head: the same 3 classes (a, b, c)" in notes
    assert "warning: they were trained with data.mean=0.2 and data.std=0.3" in notes


def test_a_config_file_comes_before_the_run_s_config(trained, capsys):
    recipe = "--config=configs/digits_resnet20.py"
    for given, size, std in ((), "24", "0.3"), ([recipe], "12", "0.3761"):
        arguments = [*given, "--set=data.mean=0.4", f"--set=model.weights={trained}"]
        inspect.FLAGS.unparse_flags()
        inspect.FLAGS(["inspect", *arguments, "--print_config"])
        with pytest.raises(SystemExit):
            inspect.inspect()
        lines = capsys.readouterr().out.splitlines()
        expected = {f"data.image_size={size}", "data.mean=0.4", f"data.std={std}"}
        assert expected <= set(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet18"], f"--model=resnet18: model.weights are of a run of {TINY_RESNET} ("),
        (["--set=model.name=resnet18"], "config.json: was trained with model.name=tests."),
        (["--num_classes=5"], "model.num_classes (5): model.weights are of a run with 3 classes"),
        (["--set=model.blur_pool=true"], "was trained with model.blur_pool=false, and here it is"),
    ],
)
def test_a_contradiction_to_the_run_is_one_line(run, trained, arguments, message):
    with pytest.raises(UserError) as caught:
        run(f"--set=model.weights={trained}", *arguments)
    assert message in str(caught.value)
    assert str(trained) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet18", "--set=model.weights=nowhere"], "nowhere: must be weights"),
        (["--model=resnet18", "--set=model.weights=no.safetensors"], "(No such file or directory)"),
        (["--set=model.weights={run}", "--model=resnet18"], "--model=resnet18: model.weights are"),
    ],
)
def test_wrong_weights_are_refused_before_tensorflow_is_imported(
    stubs, trained, arguments, message
):
    filled = [text.format(run=trained) for text in arguments]
    assert message in only_line(run_main(*filled, pythonpath=stubs, verb="trainer.inspect"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model: must name a model, such as --model=resnet50; or give --config"),
        ([f"--config={PHOTOS}"], "model.num_classes is none, and there are no data: give --num_cl"),
        (["--model=resnet_50"], "unknown model 'resnet_50'; did you mean 'resnet50'?"),
        (["--diff", "resnet18"], "--diff resnet18: must be two models"),
        (["--diff", "resnet18", ""], "must be two models"),
        (["--diff", "resnet18", "resnet34", "resnet50"], "must be two models"),
        (["--diff"], "must be two models"),
        (["--diff", "resnet18", "--format=json"], "--diff resnet18: must be two models"),
        (["--model=resnet18", "--memory_gib=inf"], "--memory_gib=inf: must be a finite number"),
        (["--model=resnet18", "--picture=x.png"], "--picture=x.png: needs --image"),
        (["--model=resnet18", f"--image={'x' * 300}"], "File name too long"),
        (["--diff=resnet18,resnet34", "--model=resnet50"], "must be two models"),
        (["--model=resnet18", "--image=nowhere.jpg"], "--image=nowhere.jpg: is not a file"),
        (
            ["--model=resnet18", f"--image={__file__}", "--picture=x.gif"],
            "--picture=x.gif: must end in",
        ),
        (["--model=resnet18", f"--image={__file__}", "--picture=/no/x.png"], "/no does not exist"),
        (["--model=resnet18", f"--image={__file__}"], "is not an image"),
        (
            ["--model=resnet18", "--set=model.num_classes=none"],
            "model.num_classes is none, and there are no data: give --num_classes",
        ),
        (["--model=vgg11_bn", "--image_size=8"], "data.image_size (8): must be at least 32"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert message in str(caught.value)
    assert "{{" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []

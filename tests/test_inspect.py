"""`python -m trainer.inspect`: its output and its errors."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import encode
from tests.small_models import TINY_RESNET, TINY_VGG
from trainer import inspect
from trainer.errors import UserError
from trainer.insight import tables

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


def test_an_image_is_shown_with_weights_and_without(run, photos, tmp_path):
    photo, out = tmp_path / "photo.jpg", tmp_path / "maps.png"
    photo.write_bytes(encode(photos[0]))
    arguments = (f"--image={photo}", "--model=resnet18", "--image_size=64", f"--picture={out}")
    text, notes = run(*arguments)
    assert "stage4" in text
    assert "weights are random" in notes
    picture = Image.open(io.BytesIO(out.read_bytes()))
    assert picture.size == (8 * 116, 5 * 116)  # stem and four stages
    content = json.loads(run(*arguments, "--format=json", "--channels=1")[0])
    assert content["stages"]["stage4"]["output"] == [2, 2, 512]


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

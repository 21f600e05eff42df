"""`python -m trainer.inspect` against what can be computed otherwise."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from tests.conftest import encode
from tests.small_models import (
    CONVNET,
    TINY_BOTTLENECK,
    TINY_MOBILENETV3,
    TINY_RESNET,
    TINY_RESNEXT,
    TINY_RS,
    TINY_VGG,
    TINY_WRN,
)
from trainer import config as config_lib
from trainer import inspect
from trainer.config import Config
from trainer.errors import UserError
from trainer.insight import memory, tables
from trainer.insight.anatomy import anatomy, watching
from trainer.insight.feature_maps import Activations, activations, grid
from trainer.models.build import build_model


def build(name: str, size: int, *settings: str):
    config = config_lib.override(
        Config(), [f"model.name={name}", f"data.image_size={size}", *settings]
    )
    return config, build_model(config, channels=3)


# --- shapes, counts, fields -------------------------------------------------------------------


def field_by_trial(model, name: str, size: int) -> int:
    """How many of the image's rows the middle of a layer's output depends on: of as many images as
    there are rows, each is brighter in another one. With positive weights nothing cancels, no ReLU
    is off, and no maximum is elsewhere."""
    for variable in model.variables:
        variable.assign(tf.abs(variable) + 0.1)
    found = {}

    def watch(layer, output):
        if layer.name == name:
            middle = output.shape[1] // 2
            found["middle"] = output.numpy()[:, middle, middle]

    brighter = np.eye(size + 1, size)[:, :, None, None] * 100.0  # the last one nowhere
    with watching(watch):
        model(tf.cast(np.broadcast_to(1 + brighter, (size + 1, size, size, 1)), tf.float32))
    depends = np.flatnonzero((found["middle"][:-1] != found["middle"][-1]).any(axis=1))
    return int(depends[-1] - depends[0] + 1)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (TINY_RESNET, 128),
        (TINY_BOTTLENECK, 96),
        (TINY_RESNEXT, 96),
        (TINY_WRN, 64),
    ],
)
def test_receptive_fields_are_what_the_output_depends_on(name, size):
    config, _ = build(name, size)
    model = build_model(config, channels=1)
    rows = [row for row in anatomy(model, size, channels=1) if row.stage != "head"]
    for row in rows:
        assert row.receptive_field < size / 2  # so that no edge cuts it off
        assert row.receptive_field == field_by_trial(model, row.name, size), row.name


def test_a_gate_by_the_means_of_the_image_is_left_out_of_the_field_and_the_head_sees_all():
    _, gated = build(TINY_RS, 64)
    fields = {row.name: row.receptive_field for row in anatomy(gated, 64, channels=3)}
    assert fields["head_pool"] is None
    assert fields["head"] is None
    assert all(pixels is not None for name, pixels in fields.items() if not name.startswith("head"))


def test_what_does_nothing_has_no_row():
    _, without = build(TINY_RESNET, 32)
    _, dropping = build(TINY_RESNET, 32, "model.dropout=0.5")
    names = [{row.name for row in anatomy(model, 32, 3)} for model in (without, dropping)]
    assert names[1] - names[0] == {"head_dropout"}


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("mixed_bfloat16", 2)])
def test_activations_are_what_the_gradient_reads(precision, bytes_each):
    """`convnet` by hand: the normalised image, of 3 channels, and two ReLUs' outputs, of 16 and 32;
    the means and the logits are small."""
    config, model = build(CONVNET, 32, f"precision={precision}")
    kept = memory.kept_by_layer(memory.training_graph(config, model, 3))
    convolutions = kept["stage1_conv"] + kept["stage2_conv"]
    outputs = bytes_each * (32 * 32 * 16 + 16 * 16 * 32)
    images = bytes_each * 32 * 32 * 3
    assert outputs <= convolutions <= outputs + images
    assert sum(kept.values()) <= 1.1 * (outputs + 4 * 32 * 32 * 3 + images)


def estimate(*settings: str) -> tuple[memory.TrainingMemory, dict[str, int]]:
    config, model = build("resnet18", 32, *settings)
    graph = memory.training_graph(config, model, 3)
    return memory.training_memory(config, model, graph), memory.kept_by_layer(graph)


def test_more_slots_an_average_and_sums_take_what_their_variables_do():
    settings = (
        "optimizer.name=sgd",
        "optimizer.name=adamw",
        "ema_decay=0.9",
        "accumulation_steps=2",
    )
    base, *others = (estimate(setting)[0].at(8) for setting in settings)
    _, model = build("resnet18", 32)
    trainable = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    every = 4 * sum(int(np.prod(v.shape)) for v in model.variables)
    assert [other - base for other in others] == [trainable, every, trainable]


def test_what_is_frozen_keeps_no_activations_and_takes_no_gradients():
    free, kept = estimate()
    frozen, kept_frozen = estimate("model.freeze=stage3")
    assert kept["stage1_block1"] > 0
    assert sum(kept_frozen[name] for name in kept if name.startswith(("stem", "stage1"))) == 0
    assert kept_frozen["stage4_block2"] == kept["stage4_block2"]
    assert frozen.at(256) < 0.6 * free.at(256)


def test_the_largest_batch_fits_at_every_point_of_the_way():
    estimate = memory.TrainingMemory(((100, 1), (10, 10)))
    assert [estimate.at(n) for n in (0, 10, 20)] == [100, 110, 210]
    for available in range(90, 400):
        batch = estimate.batch_that_fits(available)
        assert batch == 0 or estimate.at(batch) <= available < estimate.at(batch + 1)
    assert estimate.batch_that_fits(90) == 0


@pytest.mark.parametrize("name", ["resnet18", TINY_VGG, TINY_MOBILENETV3])
def test_an_image_takes_at_least_what_is_kept_of_it(name):
    config, model = build(name, 32)
    graph = memory.training_graph(config, model, 3)
    found = memory.training_memory(config, model, graph)
    kept = sum(memory.kept_by_layer(graph).values())
    assert found.at(10_001) - found.at(10_000) >= kept


# --- images -----------------------------------------------------------------------------------


def test_activations_of_an_image_are_the_stages_outputs():
    _, model = build(TINY_RESNET, 32)
    image = tf.random.stateless_normal([32, 32, 3], [1, 2])
    found = {one.stage: one for one in activations(model, image)}
    assert list(found) == ["stem", "stage1", "stage2", "head"]
    np.testing.assert_allclose(found["head"].values, model(image[None])[0], rtol=1e-5)
    x = model.stages[0][0](
        model.pool(tf.pad(model.stem(image[None]), [[0, 0], [1, 1], [1, 1], [0, 0]]))
    )
    np.testing.assert_allclose(found["stage1"].values, x[0], rtol=1e-5, atol=1e-6)
    statistics = found["stage1"].statistics
    assert statistics["zeros"] == pytest.approx(np.mean(x == 0))
    assert statistics["mean"] == pytest.approx(np.mean(x), rel=1e-4)
    assert statistics["std"] == pytest.approx(np.std(x), rel=1e-4)


def test_the_picture_has_the_most_varied_maps_each_from_black_to_white():
    values = np.zeros((2, 2, 10), np.float32)
    for channel in range(10):
        values[0, 0, channel] = channel  # the last one varies most; channel 0 not at all
    picture = grid([Activations("a", values), Activations("head", np.zeros(5, np.float32))])
    assert picture.shape == (116, 8 * 116)  # no row for what has no height
    assert picture.dtype == np.uint8
    tiles = picture.reshape(116, 8, 116).transpose(1, 0, 2)
    assert [tile[2, 2] for tile in tiles] == [255] * 8  # the pixel that is greatest
    assert [tile[60, 60] for tile in tiles] == [0] * 8
    constant = grid([Activations("a", np.ones((2, 2, 1), np.float32))])
    assert constant[60, 60] == 0  # of one number there is no contrast
    assert (constant[:, 116:] == 255).all()  # maps that are not there


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """What the command prints, to stdout and stderr."""

    def call(*arguments: str) -> tuple[str, str]:
        saved = flags.FLAGS.flag_values_dict()
        present = {name: flags.FLAGS[name].present for name in saved}
        try:
            flags.FLAGS.mark_as_parsed()
            for name in flags.FLAGS:
                flags.FLAGS[name].present = 0
            flags.FLAGS(["inspect", *inspect._joined(list(arguments))])
            assert inspect.inspect() == 0
        finally:
            for name, value in saved.items():
                flags.FLAGS[name].value = value
                flags.FLAGS[name].present = present[name]
        output = capsys.readouterr()
        return output.out, output.err

    return call


def test_the_table_in_three_formats_says_the_same(run):
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
            # The last: a stage of one layer may have that one's name.
            words = [line.replace("|", " ").split() for line in text.splitlines()]
            line = [line for line in words if line[:1] == [row["name"]]][-1]
            assert "x".join(map(str, row["output"])) in line
            assert f"{row['parameters']:,}" in line
        assert f"float32: {fits['float32']['batch_that_fits']:,} images at a time" in text
        assert "estimate" in text
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


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
    assert content["total"]["parameters"] == 272_186  # of one channel: what `make train` says


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
        (["--model=vgg11_bn", "--image_size=8"], "data.image_size (8): must be at least 32"),
    ],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert message in str(caught.value)
    assert "{{" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []

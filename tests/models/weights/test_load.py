"""Loading weights from files."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from tests.models.test_parity import GOLDEN, TOLERANCE, distance, model_of
from tests.models.test_parity import config_of as config_of_case
from tests.parity.cases import CASES, Case, images
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.weights.load import load_weights
from trainer.models.weights.names import libraries, named_variables, torch_tensors

CLASSES = tuple("0123456789")


def config(name="resnet18", *settings, size=32) -> Config:
    return config_lib.override(
        Config(), [f"model.name={name}", f"data.image_size={size}", *settings]
    )


def save(path: Path, name="resnet18", classes=10, channels=3, change=None) -> Path:
    """Writes the weights of a random model with another seed to a file."""
    source = config(name, f"model.num_classes={classes}", "seed=7")
    tensors = torch_tensors(name, build_model(source, channels))
    save_file(change(tensors) if change else tensors, path)
    return path


def load(path: Path | str, name="resnet18", *settings, channels=3):
    loading = config(name, f"model.weights={path}", *settings)
    model = build_model(loading, channels)
    return loading, model, load_weights(loading, model, CLASSES)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("resnet18", "mobilenetv3_small_100")], ids=str
)
def test_a_library_s_file_gives_the_library_s_logits(case: Case, tmp_path):
    """timm and torchvision, by the golden logits, including tensors with another layout."""
    source = model_of(case)
    path = tmp_path / "weights.safetensors"
    known = libraries(case.name)
    named = named_variables(source, known.get(case.reference) or next(iter(known.values())))
    tensors = {name: one.to_torch() for name, one in named.items()}
    if "classifier.0.weight" in tensors:  # torchvision's dense layer
        tensors["classifier.0.weight"] = tensors["classifier.0.weight"][:, :, 0, 0]
    tensors["bn1.num_batches_tracked"] = np.array(1)
    save_file(tensors, path)
    loading = config_lib.override(config_of_case(case), [f"model.weights={path}"])
    model = build_model(loading, channels=3)
    report = load_weights(loading, model, CLASSES)
    logits = model(tf.constant(images(case)), training=False)
    assert distance(logits, GOLDEN["cases"][case.key]["evaluation"]) < TOLERANCE
    assert f"{len(named)} of {len(named)} tensors" in report
    assert "1 counters (num_batches_tracked)" in report


def test_a_head_for_other_classes_starts_from_scratch_and_the_rest_is_loaded(tmp_path):
    path = save(tmp_path / "w.safetensors", classes=7)
    loading, model, report = load(path)
    assert "100 of 102 tensors" in report
    assert "fc.weight is for 7 classes, not 10" in report
    assert "fc.bias is for 7 classes, not 10" in report
    random = build_model(loading, channels=3)
    np.testing.assert_array_equal(model.head.kernel, random.head.kernel)
    stored = load_file(path)
    np.testing.assert_array_equal(
        model.stem.conv.kernel.numpy().transpose(3, 2, 0, 1), stored["conv1.weight"]
    )


def test_a_missing_head_starts_from_scratch(tmp_path):
    def beheaded(tensors):
        return {name: value for name, value in tensors.items() if not name.startswith("fc.")}

    _, _, report = load(save(tmp_path / "w.safetensors", change=beheaded))
    assert "100 of 102 tensors" in report
    assert "fc.weight is missing" in report


def test_colour_weights_treat_grey_as_three_equal_channels_and_vice_versa(tmp_path):
    grey = tf.random.stateless_normal([2, 32, 32, 1], [1, 2])
    path = save(tmp_path / "colour.safetensors")
    _, of_colour, _ = load(path)
    _, of_grey, report = load(path, channels=1)
    assert "conv1.weight for 1 channel(s), was for 3" in report
    expected = of_colour(tf.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(of_grey(grey), expected, rtol=1e-3, atol=1e-4)
    path = save(tmp_path / "grey.safetensors", channels=1)
    _, of_grey, _ = load(path, channels=1)
    _, of_colour, report = load(path, channels=3)
    assert "conv1.weight for 3 channel(s), was for 1" in report
    expected = of_grey(grey)
    np.testing.assert_allclose(
        of_colour(tf.repeat(grey, 3, axis=-1)), expected, rtol=1e-3, atol=1e-4
    )


def _as_bfloat16_file(tensors: dict[str, np.ndarray]) -> bytes:
    """Writes the format from its documentation: a length, a header in JSON, the bytes."""
    header, data = {}, b""
    for name, value in tensors.items():
        place = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": place}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_number_formats_become_float32(tmp_path, dtype):
    path = save(tmp_path / "w.safetensors")
    exact = load_file(path)
    rounded = {name: value.astype(dtype) for name, value in exact.items()}
    if dtype is ml_dtypes.bfloat16:  # which safetensors' NumPy writer does not know
        path.write_bytes(_as_bfloat16_file(rounded))
    else:
        save_file(rounded, path)
    _, model, _ = load(path)
    assert model.head.kernel.dtype == tf.float32
    np.testing.assert_array_equal(
        model.head.kernel.numpy().T, rounded["fc.weight"].astype(np.float32)
    )


def test_the_prefix_of_parallel_models_is_removed(tmp_path):
    def parallel(tensors):
        return {f"module.{name}": value for name, value in tensors.items()}

    _, _, report = load(save(tmp_path / "w.safetensors", change=parallel))
    assert "102 of 102 tensors" in report


@pytest.mark.parametrize(
    ("name", "other", "parts"),
    [
        ("resnet18", "resnet34", ["is not resnet34", "102 of 182 tensors fit",
                                  "layer1.2.conv1.weight is missing", "and 75 more"]),
        ("resnet34", "resnet18", ["is not resnet18", "102 of 102 tensors fit",
                                  "layer1.2.bn1.bias is not in the model"]),
        ("resnet18", "seresnet18", ["layer1.0.se.fc1.weight is missing"]),
        ("resnet18", "resnet18d", ["conv1.0.weight is missing"]),
        ("wrn28_2", "wrn16_4", ["stage1_block1.conv1.weight is 32x16x3x3, must be 64x16x3x3"]),
        ("mobilenetv2_050", "resnet20", ["4 of 107 tensors fit"]),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_with_the_first_mismatches(
    tmp_path, name, other, parts
):
    path = save(tmp_path / "w.safetensors", name)
    loading = config(other, f"model.weights={path}")
    model = build_model(loading, channels=3)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError) as caught:
        load_weights(loading, model, CLASSES)
    message = str(caught.value)
    assert message.startswith(f"model.weights: {path}: ")
    assert [part for part in parts if part not in message] == []
    assert len(message) < 600
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def _broken(path: Path) -> Path:
    save(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path, "cannot be read (No such file or directory)"),
        (
            lambda path: path.write_bytes(b"not tensors at all") and path,
            "is not a safetensors file",
        ),
        (lambda path: path.write_bytes(b"") or path, "is not a safetensors file"),
        (_broken, "is not a safetensors file, or damaged"),
        (lambda path: save_file({}, path) or path, "holds no tensors"),
        (lambda path: path.with_suffix(""), "must be weights (.safetensors, "),
        (lambda path: path.parent, "it holds no checkpoint"),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(tmp_path, make, reason):
    path = make(tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"model.weights: {path}")
    assert reason in str(caught.value)


def _with(**values):
    def change(tensors):
        return tensors | {name.replace("__", "."): value for name, value in values.items()}

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_with(fc__bias=np.array(1.0)), "fc.bias is a single number, must be 10"),
        (_with(bn1__weight=np.full(64, np.nan, np.float32)), "bn1.weight holds numbers that are"),
        (_with(fc__bias=np.zeros(0, np.float32)), "fc.bias is 0, must be 10"),
    ],
)
def test_broken_numbers_are_named(tmp_path, change, part):
    with pytest.raises(UserError) as caught:
        load(save(tmp_path / "w.safetensors", change=change))
    assert part in str(caught.value)


def test_torchvision_s_mobilenetv3_needs_its_epsilon(tmp_path):
    case = next(c for c in CASES if c.key.startswith("torchvision mobilenetv3_small"))
    known = libraries(case.name)["torchvision"]
    tensors = {n: one.to_torch() for n, one in named_variables(model_of(case), known).items()}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"model.batch_norm_epsilon=0.001, not 1e-05; set it too"):
        load(tmp_path / "w.safetensors", "mobilenetv3_small_100")


def test_without_pytorch_its_format_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "w.pth"
    path.write_bytes(b"anything")
    with pytest.raises(UserError, match=r"needs PyTorch to read: pip install torch, or use"):
        load(path)

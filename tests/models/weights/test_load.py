"""Weights from files and other runs, and back; fine-tuning."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from safetensors.numpy import load_file, save_file

from tests.conftest import strategy_of
from tests.models.test_families import config_of, losses
from tests.models.test_parity import GOLDEN, TOLERANCE, distance, model_of
from tests.models.test_parity import config_of as config_of_case
from tests.parity.cases import CASES, Case, images
from tests.small_models import CONVNET, TINY_RESNET
from tests.step_runs import Run, StopAfter
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import PreemptedError, UserError
from trainer.models.build import build_model
from trainer.models.stages import stages_of
from trainer.models.weights import tensor_file
from trainer.models.weights.load import load_weights
from trainer.models.weights.names import libraries, named_variables, torch_tensors
from trainer.models.weights.saved import read_checkpoint
from trainer.run import train as train_lib
from trainer.run.checkpoint import Checkpoints, run_metadata
from trainer.run.folder import RunFolder
from trainer.step.state import TrainState


def config(name="resnet18", *settings, size=32) -> Config:
    return config_lib.override(
        Config(), [f"model.name={name}", f"data.image_size={size}", *settings]
    )


def save(path: Path, name="resnet18", classes=10, channels=3, change=None) -> Path:
    """Weights of a random model of another seed, as a file."""
    source = config(name, f"model.num_classes={classes}", "seed=7")
    tensors = torch_tensors(name, build_model(source, channels))
    save_file(change(tensors) if change else tensors, path)
    return path


def load(path: Path | str, name="resnet18", *settings, channels=3):
    loading = config(name, f"model.weights={path}", *settings)
    model = build_model(loading, channels)
    return loading, model, load_weights(loading, model)


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("resnet18", "mobilenetv3_small_100")], ids=str
)
def test_a_library_s_file_gives_the_library_s_logits(case: Case, tmp_path):
    """timm and torchvision, by the golden logits; also tensors that they lay out differently."""
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
    report = load_weights(loading, model)
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
    """The format's documentation: a length, a header in JSON, the bytes."""
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
        load_weights(loading, model)
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


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, small_config, digits) -> Path:
    """A run of a few steps: its last and its best checkpoint, which are not the same."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(small_config, digits, strategy_of(1))
    checkpoints = Checkpoints(
        folder / "checkpoints", run.state, run_metadata(small_config, digits), 3, is_chief=True
    )
    run.train(2)
    checkpoints.save_best(2)
    run.train(2)
    checkpoints.save(4)
    return folder


def test_a_run_s_folder_stands_for_its_best_checkpoint_and_the_average(run_folder, small_config):
    best = read_checkpoint(run_folder)
    assert best.origin == f"the moving average of {run_folder}/checkpoints/best/ckpt-2"
    last = read_checkpoint(run_folder / "checkpoints")
    assert last.origin.endswith("checkpoints/ckpt-4")
    raw = read_checkpoint(run_folder / "checkpoints" / "ckpt-4", average=False)
    assert raw.origin == f"the weights of {run_folder}/checkpoints/ckpt-4"
    kernels = [saved.model.stem.conv.kernel.numpy() for saved in (best, last, raw)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    assert best.config == small_config


def test_export_and_back_is_exact(run_folder, small_config, tmp_path):
    """By the command, in its own process: a module of the user's, and the moving average."""
    out = tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "trainer.export", f"--run={run_folder}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{out}: tests.small_models.resnet8, ")
    saved = read_checkpoint(run_folder)
    loading = dataclasses.replace(
        small_config, model=dataclasses.replace(small_config.model, weights=str(out))
    )
    model = build_model(loading, saved.metadata["channels"])
    load_weights(loading, model)
    for ours, theirs in zip(model.variables, saved.model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_s_checkpoint_is_loaded_as_weights_on_two_replicas(run_folder, small_config):
    loading = dataclasses.replace(
        small_config, model=dataclasses.replace(small_config.model, weights=str(run_folder))
    )
    saved = read_checkpoint(run_folder)
    strategy = strategy_of(2)
    with strategy.scope():
        state = TrainState(loading, saved.metadata["channels"])
    report = load_weights(loading, state.model)
    assert "the moving average of" in report
    for variable, value in zip(state.model.variables, saved.model.variables, strict=True):
        for copy in strategy.experimental_local_results(variable):
            np.testing.assert_array_equal(copy, value)


def test_a_checkpoint_that_is_not_a_run_s_is_refused(tmp_path, small_config):
    path = tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other: is not a checkpoint of a run"):
        read_checkpoint(Path(path))


@pytest.mark.parametrize("setting", ["model.batch_norm_epsilon=0.001", "model.blur_pool=true"])
def test_weights_of_the_same_shapes_for_another_function_are_refused(
    run_folder, small_config, setting
):
    field, _, value = setting.partition("=")
    loading = config_lib.override(small_config, [f"model.weights={run_folder}", setting])
    model = build_model(loading, channels=1)
    with pytest.raises(UserError) as caught:
        load_weights(loading, model)
    assert f"was trained with {field}=" in str(caught.value)
    assert f"not {value.capitalize()}; set it too" in str(caught.value)


def test_the_classes_of_a_loaded_head_are_reported(run_folder, small_config):
    loading = config_lib.override(small_config, [f"model.weights={run_folder}"])
    assert "its classes were 0, 1, 2, 3, 4, …" in load_weights(loading, build_model(loading, 1))


@pytest.mark.parametrize("bytes_left", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_is_one_line(run_folder, tmp_path, bytes_left):
    for path in (run_folder / "checkpoints").glob("ckpt-4*"):
        content = path.read_bytes()
        kept = int(len(content) * bytes_left) if ".data" in path.name else len(content)
        (tmp_path / path.name).write_bytes(content[:kept])
    policy = tf_keras.mixed_precision.global_policy()
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "ckpt-4")
    assert str(caught.value).startswith(f"{tmp_path}/ckpt-4: is ")
    assert tf_keras.mixed_precision.global_policy() is policy


def test_metadata_are_written_with_the_tensors(tmp_path):
    tensor_file.write(
        tmp_path / "x.safetensors", {"a": np.zeros(2)}, {"class_names": json.dumps(["é", "b"])}
    )
    from safetensors import safe_open

    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["class_names"]) == ["é", "b"]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.safetensors"]


# --- fine-tuning ------------------------------------------------------------------------------


def changed(run: Run, steps: int) -> dict[str, set[bool]]:
    """For each stage, whether its variables have changed after these steps."""
    before = {v.ref(): v.numpy() for v in run.state.model.variables}
    losses(run, steps)
    return {
        stage: {not np.array_equal(v, before[v.ref()]) for layer in layers for v in layer.variables}
        for stage, layers in stages_of(run.state.model).items()
    }


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_frozen_stages_stay_to_the_bit_with_their_statistics(digits_config, digits, num_replicas):
    settings = ("model.freeze=stage1", "ema_decay=0.9", "optimizer.weight_decay=0.01")
    frozen = config_of(digits_config, TINY_RESNET, *settings, "model.sync_batch_norm=false")
    run = Run(frozen, digits, strategy_of(num_replicas))
    assert changed(run, 3) == {"stem": {False}, "stage1": {False}, "stage2": {True}, "head": {True}}
    for average, value in zip(
        run.state.ema_model.variables[:5], run.state.model.variables[:5], strict=True
    ):
        np.testing.assert_array_equal(average, value)


def test_the_frozen_part_normalises_in_training_as_in_evaluation(digits_config):
    frozen = config_of(digits_config, TINY_RESNET, "model.freeze=stage1")
    model = build_model(frozen, channels=1)
    x = tf.random.stateless_normal([4, 16, 16, 1], [1, 2])
    np.testing.assert_array_equal(model.stem(x, training=True), model.stem(x, training=False))
    free = build_model(config_of(digits_config, TINY_RESNET), channels=1)
    assert np.abs(free.stem(x, training=True) - free.stem(x, training=False)).max() > 0.1


def test_batch_norm_in_inference_mode_needs_batch_norm(digits_config):
    with pytest.raises(UserError, match=r"model.batch_norm_inference \(True\): tests.small_models.convnet has no"):
        build_model(
            config_of(digits_config, CONVNET, "model.batch_norm_inference=true"),
            1,
        )


def test_batch_norm_in_inference_mode_learns_scales_and_leaves_statistics(digits_config, digits):
    settings = ("model.batch_norm_inference=true",)
    run = Run(
        config_of(digits_config, TINY_RESNET, *settings),
        digits,
        strategy_of(1),
    )
    norm = run.state.model.stem.norm
    before = [v.numpy() for v in norm.variables]
    losses(run, 3)
    same = {
        v.name.split("/")[-1]: np.array_equal(v, b)
        for v, b in zip(norm.variables, before, strict=True)
    }
    assert same == {
        "gamma:0": False, "beta:0": False, "moving_mean:0": True, "moving_variance:0": True
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stage_s_rate_multiplies_its_first_step(digits_config, digits, optimizer):
    """By the update rules, the first step of a variable is proportional to its rate."""
    rates = (0.5, 0.1, 1.0, 2.0)
    settings = (f"optimizer.name={optimizer}", "optimizer.weight_decay=0.01")
    moved = []
    for more in ((), (f"optimizer.stage_rates={','.join(map(str, rates))}",)):
        run = Run(
            config_of(digits_config, TINY_RESNET, *settings, *more),
            digits,
            strategy_of(1),
        )
        before = {v.ref(): v.numpy() for v in run.state.model.trainable_variables}
        losses(run, 1)
        moved.append(
            {
                stage: [
                    variable.numpy() - before[variable.ref()]
                    for layer in layers
                    for variable in layer.trainable_variables
                ]
                for stage, layers in stages_of(run.state.model).items()
            }
        )
    for rate, stage in zip(rates, moved[0], strict=True):
        for plain, scaled in zip(moved[0][stage], moved[1][stage], strict=True):
            np.testing.assert_allclose(scaled, rate * plain, rtol=2e-3, atol=2e-7)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.freeze=stage9", "model.freeze ('stage9'): must be a stage of tiny_resnet "
         "before the last: stem, stage1, stage2"),
        ("model.freeze=head", "model.freeze ('head'): must be a stage"),
        ("optimizer.stage_rates=0.1,1", "optimizer.stage_rates (2 values): tiny_resnet has 4 "
         "stages, and each needs a value: stem, stage1, stage2, head"),
    ],
)  # fmt: skip
def test_unknown_stages_are_named(digits_config, setting, message):
    with pytest.raises(UserError) as caught:
        TrainState(config_of(digits_config, TINY_RESNET, setting), channels=1)
    assert message in str(caught.value)


def test_fine_tuning_resumes_without_the_file(tmp_path, run_folder, small_config, data_dir, capsys):
    weights = tmp_path / "w.safetensors"
    saved = read_checkpoint(run_folder)
    tensor_file.write(weights, torch_tensors(saved.config.model.name, saved.model), {})
    tuned = dataclasses.replace(
        small_config,
        num_epochs=2.0,
        steps_per_loop=3,
        model=dataclasses.replace(small_config.model, weights=str(weights), freeze="stem"),
        optimizer=dataclasses.replace(small_config.optimizer, warmup_epochs=0.0),
    )

    def train(folder: str) -> str:
        train_lib.train_and_evaluate(
            tuned, strategy_of(1), RunFolder(str(tmp_path / folder), tuned), data_dir
        )
        return capsys.readouterr().out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib, "_StopRequest", StopAfter(2))
        with pytest.raises(PreemptedError):
            train("run")
    assert re.search(
        r"weights: (\d+) of \1 tensors from .*, by trainer's names", capsys.readouterr().out
    )
    weights.unlink()
    out = train("run")
    assert "weights:" not in out
    assert "from step 6 of" in out
    end = read_checkpoint(tmp_path / "run" / "checkpoints", average=False)
    np.testing.assert_array_equal(end.model.stem.conv.kernel, saved.model.stem.conv.kernel)
    assert np.abs(end.model.head.kernel.numpy() - saved.model.head.kernel.numpy()).max() > 0.01

"""Weights from a run's checkpoints."""

import dataclasses
import json
import stat
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.conftest import strategy_of
from trainer import config as config_lib
from trainer.config.text import spell
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.weights import tensor_file
from trainer.models.weights.export import export
from trainer.models.weights.load import load_weights
from trainer.models.weights.saved import read_checkpoint
from trainer.step.state import TrainState

CLASSES = tuple("0123456789")  # those of the digits


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
    """With the command, in its own process: a user's module, and the moving average."""
    out = tmp_path / "model.safetensors"
    command = [sys.executable, "-m", "trainer.export", f"--run={run_folder}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, umask=0o027)
    assert done.stdout.startswith(f"{out}: tests.small_models.resnet8, ")
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    saved = read_checkpoint(run_folder)
    loading = dataclasses.replace(
        small_config, model=dataclasses.replace(small_config.model, weights=str(out))
    )
    model = build_model(loading, saved.trained.channels)
    load_weights(loading, model, CLASSES)
    for ours, theirs in zip(model.variables, saved.model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_s_checkpoint_is_loaded_as_weights_on_two_replicas(run_folder, small_config):
    loading = dataclasses.replace(
        small_config, model=dataclasses.replace(small_config.model, weights=str(run_folder))
    )
    saved = read_checkpoint(run_folder)
    strategy = strategy_of(2)
    with strategy.scope():
        state = TrainState(loading, saved.trained.channels)
    report = load_weights(loading, state.model, CLASSES[::-1])
    assert "the moving average of" in report
    for variable, value in zip(state.model.variables, saved.model.variables, strict=True):
        is_head = variable.name.startswith("head/")  # its last axis is the classes
        expected = value.numpy()[..., ::-1] if is_head else value
        for copy in strategy.experimental_local_results(variable):
            np.testing.assert_array_equal(copy, expected)


def test_a_checkpoint_that_is_not_a_run_s_is_refused(tmp_path, small_config):
    path = tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other: is not a checkpoint of a run"):
        read_checkpoint(Path(path))


def test_a_path_without_a_checkpoint_is_refused_with_what_it_must_be(tmp_path, small_config):
    """An export takes runs alone, `model.weights` files of tensors too."""
    path = tmp_path / "missing"
    with pytest.raises(UserError) as caught:
        export(path, tmp_path / "x.safetensors")
    there = "a run's folder or a checkpoint, but it does not exist"
    assert str(caught.value) == f"--run={path}: must be {there}"
    loading = config_lib.override(small_config, [f"model.weights={path}"])
    with pytest.raises(UserError) as caught:
        load_weights(loading, build_model(loading, channels=1), CLASSES)
    suffixes = ", ".join(tensor_file.SUFFIXES)
    assert str(caught.value) == f"model.weights: {path}: must be weights ({suffixes}), {there}"


@pytest.mark.parametrize("setting", ["model.batch_norm_epsilon=0.001", "model.blur_pool=true"])
def test_weights_of_the_same_shapes_for_another_function_are_refused(
    run_folder, small_config, setting
):
    field, _, value = setting.partition("=")
    loading = config_lib.override(small_config, [f"model.weights={run_folder}", setting])
    model = build_model(loading, channels=1)
    with pytest.raises(UserError) as caught:
        load_weights(loading, model, CLASSES)
    was = spell(attrgetter(field)(small_config))
    expected = f"was trained with {field}={was}, and here it is {value}: --set {field}={was}"
    assert str(caught.value).endswith(expected)


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

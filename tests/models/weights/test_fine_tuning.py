"""Training from weights: freezing, learning rates per stage, resuming."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of
from tests.models.test_families import config_of, losses
from tests.small_models import CONVNET, TINY_RESNET
from tests.step_runs import Run, StopAfter
from trainer.errors import PreemptedError, UserError
from trainer.models.build import build_model
from trainer.models.stages import stages_of
from trainer.models.weights import tensor_file
from trainer.models.weights.names import torch_tensors
from trainer.models.weights.saved import read_checkpoint
from trainer.run import train as train_lib
from trainer.run.folder import RunFolder
from trainer.step.state import TrainState


def changed(run: Run, steps: int) -> dict[str, set[bool]]:
    """Returns, for each stage, whether its variables have changed after these steps."""
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
    with pytest.raises(
        UserError, match=r"model.batch_norm_inference \(True\): tests.small_models.convnet has no"
    ):
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
    """By the update rules, a variable's first step is proportional to its rate."""
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
        patch.setattr(train_lib, "StopRequest", StopAfter(2))
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

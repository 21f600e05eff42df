"""Saved configs: the hash that names a run, and the values that other programs read."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from operator import attrgetter

import pytest

from tests.config.common import ROOT, fields
from trainer import config as config_lib
from trainer.config import Config, load, override

# Another valid value for every field, and whether it changes the results.
OTHER_VALUES: dict[str, tuple[typing.Any, bool]] = {
    "seed": (1, True),
    "num_epochs": (2.0, True),
    "precision": ("mixed_bfloat16", True),
    "xla": ("on", True),
    "deterministic": (True, True),
    "accumulation_steps": (2, True),
    "label_smoothing": (0.1, True),
    "ema_decay": (0.99, True),
    "initial_loss_scale": (1024.0, True),
    "steps_per_loop": (5, False),
    "eval_every_epochs": (0.5, False),
    "on_divergence": ("rollback", False),
    "rollback_factor": (0.1, False),
    "max_rollbacks": (7, False),
    "checkpoint_every_s": (5.0, False),
    "keep_checkpoints": (7, False),
    "model.name": ("resnet32", True),
    "model.num_classes": (11, True),
    "model.zero_init_residual": (False, True),
    "model.blur_pool": (True, True),
    "model.stochastic_depth": (0.1, True),
    "model.dropout": (0.1, True),
    "model.weights": ("resnet50.safetensors", True),
    "model.freeze": ("stage2", True),
    "model.batch_norm_inference": (True, True),
    "model.sync_batch_norm": (False, True),
    "model.batch_norm_momentum": (0.99, True),
    "model.batch_norm_epsilon": (1e-3, True),
    "data.name": ("cifar10", True),
    "data.path": ("mnist", True),
    "data.train_split": ("train[:90%]", True),
    "data.eval_split": ("train[90%:]", True),
    "data.eval_fraction": (0.1, True),
    "data.channels": (1, True),
    "data.image_field": ("image", True),
    "data.label_field": ("label", True),
    "data.first_label": (1, True),
    "data.shuffle": ("blocks", True),
    "data.shuffle_block_size": (64, True),
    "data.repeats": (2, True),
    "data.on_bad_example": ("skip", False),
    "data.image_size": (16, True),
    "data.train_sizes": ((8,), True),
    "data.train_size_epochs": ((0.5,), True),
    "data.mean": ((0.4,), True),
    "data.std": ((0.4,), True),
    "data.crop": ("pad", True),
    "data.pad": (1, True),
    "data.flip": (True, True),
    "data.eval_crop_ratio": (1.0, True),
    "data.antialias": (True, True),
    "data.global_batch_size": (64, True),
    "data.eval_batch_size": (64, False),
    "augment.policy": ("randaugment", True),
    "augment.num_layers": (1, True),
    "augment.magnitude": (5.0, True),
    "augment.color_jitter": (0.4, True),
    "augment.erasing": (0.25, True),
    "augment.mixup": (0.2, True),
    "augment.cutmix": (1.0, True),
    "optimizer.name": ("adamw", True),
    "optimizer.learning_rate": (0.8, True),
    "optimizer.momentum": (0.8, True),
    "optimizer.nesterov": (False, True),
    "optimizer.beta2": (0.99, True),
    "optimizer.epsilon": (1e-6, True),
    "optimizer.weight_decay": (1e-4, True),
    "optimizer.decoupled_weight_decay": (True, True),
    "optimizer.clip_norm": (1.0, True),
    "optimizer.schedule": ("constant", True),
    "optimizer.warmup_epochs": (1.0, True),
    "optimizer.milestones": ((1.0,), True),
    "optimizer.milestone_factor": (0.5, True),
    "optimizer.stage_rates": ((0.1, 1.0), True),
}


def with_value(config: Config, path: str, value: typing.Any) -> Config:
    """Returns `config` with one field changed, without the checks between fields."""
    section, _, name = path.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    part = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: part})


def saved(config: Config) -> dict[str, typing.Any]:
    """Returns a config as it is read from a run's folder."""
    return json.loads(json.dumps(config_lib.to_dict(config)))


def test_the_table_of_other_values_has_every_field():
    assert set(OTHER_VALUES) == set(fields())


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_hash_and_the_differences_depend_on_what_changes_results(path):
    value, changes_results = OTHER_VALUES[path]
    before = Config()
    after = with_value(before, path, value)
    assert after != before
    assert (config_lib.short_hash(after) != config_lib.short_hash(before)) == changes_results
    differences = config_lib.differences(saved(after), saved(before))
    assert [text.split(" is ")[0] for text in differences] == ([path] if changes_results else [])


def test_different_results_have_different_hashes():
    changed = [with_value(Config(), p, value) for p, (value, yes) in OTHER_VALUES.items() if yes]
    assert len({config_lib.short_hash(config) for config in changed}) == len(changed)


def test_the_hash_is_the_same_in_every_process():
    config = load(str(ROOT / "configs/digits_resnet20.py"))
    command = (
        "from trainer import config\n"
        "print(config.short_hash(config.load('configs/digits_resnet20.py')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch("[0-9a-f]{8}", result.stdout.strip())
    assert result.stdout.strip() == config_lib.short_hash(config)


def test_a_whole_number_for_a_fraction_is_the_same_run():
    whole, fraction = Config(num_epochs=30), Config(num_epochs=30.0)
    assert config_lib.short_hash(whole) == config_lib.short_hash(fraction)
    assert config_lib.differences(saved(whole), saved(fraction)) == []


def test_a_difference_shows_both_values():
    before = Config(ema_decay=None)
    after = override(before, ["optimizer.learning_rate=0.8", "ema_decay=0.99", "data.mean=0.25"])
    assert config_lib.differences(saved(after), saved(before)) == [
        "data.mean is [0.25], was [0.5]",
        "ema_decay is 0.99, was None",
        "optimizer.learning_rate is 0.8, was 0.1",
    ]


def test_a_field_that_the_saved_config_lacks_is_a_difference():
    old = saved(Config())
    del old["seed"], old["keep_checkpoints"]
    differences = config_lib.differences(saved(Config()), old)
    assert len(differences) == 1
    assert differences[0].startswith("seed is 0")


@pytest.mark.parametrize("value", [True, False])
def test_a_saved_config_with_a_field_s_earlier_name_is_the_same_run(value):
    config = override(Config(), [f"model.sync_batch_norm={value}"])
    old = saved(config)
    old["sync_bn"] = old.pop("model.sync_batch_norm")
    assert config_lib.from_dict(old) == config
    assert config_lib.differences(saved(config), old) == []
    other = override(config, [f"model.sync_batch_norm={not value}"])
    assert config_lib.differences(saved(other), old) == [
        f"model.sync_batch_norm is {not value}, was {value}"
    ]


def test_a_saved_config_has_every_field_by_its_path():
    config = load(str(ROOT / "configs/digits_resnet20.py"))
    got = saved(config)
    assert set(got) == set(fields())
    for path, value in got.items():
        expected = attrgetter(path)(config)
        assert value == (list(expected) if isinstance(expected, tuple) else expected)

"""The config: loading a file, overriding its fields, what is refused, and what names a run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from operator import attrgetter
from pathlib import Path

import pytest

from trainer import config as config_lib
from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig, load, override
from trainer.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
WITHOUT_TENSORFLOW = ("trainer.config", "trainer.run.folder", "trainer.data", "trainer.models")


def fields(section: object = None, prefix: str = "") -> dict[str, typing.Any]:
    """Every field's path and annotation, read from the dataclasses and not by trainer.config."""
    section = Config() if section is None else section
    found: dict[str, typing.Any] = {}
    for name, annotation in typing.get_type_hints(type(section)).items():
        if typing.get_origin(annotation) is typing.ClassVar:
            continue
        if dataclasses.is_dataclass(annotation):
            found |= fields(getattr(section, name), f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def refusal(*assignments: str, config: Config | None = None) -> str:
    """The message with which `--set` of these is refused; it must be one line."""
    with pytest.raises(UserError) as caught:
        override(config or Config(), assignments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# --- files ------------------------------------------------------------------------------------


def test_the_recipes_are_there():
    assert {"digits_resnet20.py", "cifar10_resnet20.py", "imagenet_resnet50.py"} <= {
        path.name for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_validates(path):
    config = load(str(path))
    config.validate()
    assert path.stem.endswith(config.model.name)  # a file is named after what it holds
    what = path.stem.partition("_")[0]
    assert what == "finetune" or config.data.name.startswith(what)


def test_a_missing_file_is_named_with_those_there_are(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "good.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load("configs/god.py")
    assert str(caught.value) == (
        "--config=configs/god.py: cannot be read (No such file or directory); "
        "there is configs/good.py"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n\ndef get_config(:\n    pass\n", "line 3: invalid syntax"),
        ("x = 1\n", "must define get_config() -> Config; it does not"),
        ("get_config = 3\n", "must define get_config() -> Config; it does not"),
        (
            "def get_config():\n    return {'seed': 1}\n",
            "get_config() must return a trainer.config.Config, not dict",
        ),
        (
            "def get_config():\n    raise KeyError('colour')\n",
            "get_config() failed: KeyError: 'colour'",
        ),
        (
            "from trainer.config import Config\n\ndef get_config():\n    return Config(sed=1)\n",
            "get_config() failed: TypeError: Config.__init__() got an unexpected keyword argument "
            "'sed'",
        ),
        (
            "from trainer.config import Config\n\ndef get_config():\n    return Config(seed=-1)\n",
            "seed: must be in [0, 2**31), not -1",
        ),
        ("raise ValueError('a\\nb')\n", "ValueError: a b"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_broken_file_is_answered_with_its_name_and_the_reason(tmp_path, text, reason):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert str(caught.value) == f"--config={path}: {reason}"


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be read (not UTF-8 text)")):
        load(str(path))


def test_a_file_whose_fields_contradict_each_other_is_refused_by_override(tmp_path):
    path = tmp_path / "contradiction.py"
    path.write_text(
        "from trainer.config import Config, DataConfig\n"
        "def get_config():\n    return Config(data=DataConfig(crop='pad'))\n"
    )
    assert "data.pad (0)" in refusal(config=load(str(path)))


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("optimizer.learning_rate", "0.8", 0.8),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("optimizer.learning_rate", "2", 2.0),
        ("data.global_batch_size", "256", 256),
        ("seed", " 7 ", 7),
        ("deterministic", "true", True),
        ("deterministic", "True", True),
        ("sync_bn", "FALSE", False),
        ("ema_decay", "0.999", 0.999),
        ("ema_decay", "none", None),
        ("ema_decay", "None", None),
        ("optimizer.clip_norm", "1", 1.0),
        ("data.path", "mnist", "mnist"),
        ("data.path", "none", None),
        ("data.train_split", "none", "none"),
        ("data.train_split", "train[:90%]", "train[:90%]"),
        ("data.mean", "0.25", (0.25,)),
        ("data.mean", "(0.25,)", (0.25,)),
        ("optimizer.milestones", "()", ()),
        ("precision", "mixed_bfloat16", "mixed_bfloat16"),
        ("optimizer.name", "adamw", "adamw"),
        ("steps_per_loop", "auto", "auto"),
        ("steps_per_loop", "50", 50),
    ],
)
def test_a_value_is_parsed_by_the_type_of_its_field(path, text, value):
    before = Config(ema_decay=0.5, deterministic=False, steps_per_loop=3)
    got = attrgetter(path)(override(before, [f"{path}={text}"]))
    assert got == value
    assert type(got) is type(value)


def test_a_tuple_of_several_values_by_comma():
    config = override(Config(), ["optimizer.schedule=step", "optimizer.milestones=1, 2.5,4"])
    assert config.optimizer.milestones == (1.0, 2.5, 4.0)
    assert {type(value) for value in config.optimizer.milestones} == {float}


def test_an_assignment_is_split_at_its_first_equals_sign():
    assert override(Config(), ["data.path=a=b=c"]).data.path == "a=b=c"


def test_only_the_named_fields_change_and_the_last_assignment_holds():
    before = load(str(ROOT / "configs/digits_resnet20.py"))
    after = override(before, ["seed=1", "optimizer.momentum=0.8", "seed=2"])
    optimizer = dataclasses.replace(before.optimizer, momentum=0.8)
    assert after == dataclasses.replace(before, seed=2, optimizer=optimizer)


def test_an_assignment_without_equals_sign():
    assert refusal("seed") == "--set seed: must be FIELD=VALUE"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.momentum", "optimizer.momentum"),
        ("data.num_classes", "model.num_classes"),
        ("input_pipeline.flip", "data.flip"),
        ("Seed", "seed"),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(path, near):
    assert refusal(f"{path}=1") == f"{path}: unknown field; did you mean {near!r}?"


def test_an_unknown_field_like_no_other_is_answered_with_all():
    message = refusal("xyzzy=1")
    prefix, _, known = message.partition("; known: ")
    assert prefix == "xyzzy: unknown field"
    assert set(known.split(", ")) == set(fields())


@pytest.mark.parametrize("path", ["optimizer", "model"])
def test_a_section_is_no_field(path):
    assert refusal(f"{path}=sgd").startswith(f"{path}: unknown field; ")


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("seed", "abc", "a whole number"),
        ("seed", "1.0", "a whole number"),
        ("seed", "", "a whole number"),
        ("seed", "none", "a whole number"),
        ("num_epochs", "many", "a finite number"),
        ("deterministic", "yes", "true or false"),
        ("deterministic", "1", "true or false"),
        ("ema_decay", "off", "a finite number or none"),
        ("data.mean", "0.5,x", "a tuple, each a finite number"),
        ("steps_per_loop", "Auto", "a whole number or 'auto'"),
        ("steps_per_loop", "2.5", "a whole number or 'auto'"),
        ("precision", "float16", "'float32' or 'mixed_bfloat16' or 'mixed_float16'"),
        ("xla", "true", "'auto' or 'on' or 'off'"),
        ("optimizer.name", "adam", "'sgd' or 'adamw'"),
    ],
)
def test_text_that_spells_no_value_of_the_type(path, text, rule):
    assert refusal(f"{path}={text}") == f"{path}: must be {rule}, not {text!r}"


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (Config, "seed", 1.5),
        (Config, "seed", True),
        (Config, "deterministic", 1),
        (Config, "num_epochs", True),
        (Config, "num_epochs", "30"),
        (Config, "steps_per_loop", 2.0),
        (Config, "ema_decay", "none"),
        (Config, "model", None),
        (Config, "data", ModelConfig()),
        (ModelConfig, "num_classes", 10.0),
        (DataConfig, "mean", [0.5]),
        (DataConfig, "mean", (0.5, "0.5")),
        (DataConfig, "path", 3),
        (OptimizerConfig, "learning_rate", None),
    ],
)
def test_a_value_of_the_wrong_type_in_a_config_file(section, field, value):
    path = re.escape(f"{section.PATH}{field}: must be ")
    with pytest.raises(UserError, match=f"^{path}.*, not {re.escape(repr(value))}$"):
        section(**{field: value})


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


# Values outside each range, and the outermost ones inside it.
RANGES: dict[str, tuple[list[str], list[str]]] = {
    "seed": (["-1", "2147483648"], ["0", "2147483647"]),
    "num_epochs": (["0", "-1"], ["0.01"]),
    "accumulation_steps": (["0", "-1"], ["1"]),
    "label_smoothing": (["-0.1", "1"], ["0", "0.99"]),
    "ema_decay": (["0", "1"], ["0.01", "0.9999"]),
    "initial_loss_scale": (["0.5"], ["1"]),
    "steps_per_loop": (["0", "-1"], ["1"]),
    "eval_every_epochs": (["0"], ["0.01"]),
    "rollback_factor": (["0", "1.1"], ["1"]),
    "max_rollbacks": (["0", "17"], ["16"]),
    "checkpoint_every_s": (["-1"], ["0"]),
    "keep_checkpoints": (["0"], ["1"]),
    "model.num_classes": (["1"], ["2"]),
    "model.stochastic_depth": (["-0.1", "1"], ["0", "0.99"]),
    "model.dropout": (["-0.1", "1"], ["0", "0.99"]),
    "model.batch_norm_momentum": (["-0.1", "1"], ["0", "0.999"]),
    "model.batch_norm_epsilon": (["0"], ["1e-9"]),
    "data.eval_fraction": (["0", "1"], []),
    "data.channels": (["0", "2", "4"], ["1", "3"]),
    "data.first_label": (["-1"], ["0", "1"]),
    "data.shuffle_block_size": (["0"], ["1"]),
    "data.repeats": (["0"], ["1", "3"]),
    "data.image_size": (["0"], ["1"]),
    "data.train_sizes": (["0", "8,-1"], ["()"]),
    "data.train_size_epochs": (["0", "2,1"], ["()"]),
    "data.mean": (["-0.1", "1.1", "123.7"], ["0", "1"]),
    "data.std": (["0", "-0.5", "()"], ["0.01"]),
    "data.pad": (["-1"], ["0"]),
    "data.eval_crop_ratio": (["0", "1.01"], ["0.01", "1"]),
    "data.global_batch_size": (["0", "-64"], ["1"]),
    "data.eval_batch_size": (["0"], ["1"]),
    "augment.num_layers": (["0", "15"], ["1", "14"]),
    "augment.magnitude": (["-1", "31"], ["0", "30"]),
    "augment.color_jitter": (["-0.1", "1.1"], ["0", "1"]),
    "augment.erasing": (["-0.1", "1.1"], ["0", "1"]),
    "augment.mixup": (["-0.1"], ["0", "0.2"]),
    "augment.cutmix": (["-0.1"], ["0", "1"]),
    "optimizer.learning_rate": (["0", "-0.1"], ["1e-9"]),
    "optimizer.momentum": (["-0.1", "1"], ["0", "0.999"]),
    "optimizer.beta2": (["-0.1", "1"], ["0", "0.9999"]),
    "optimizer.epsilon": (["0"], ["1e-12"]),
    "optimizer.weight_decay": (["-0.0001"], ["0"]),
    "optimizer.clip_norm": (["0", "-1"], ["0.01"]),
    "optimizer.warmup_epochs": (["-1"], ["0", "1"]),
    "optimizer.milestones": (["2,1", "1,1"], ["()"]),
    "optimizer.milestone_factor": (["0"], ["0.01"]),
    "optimizer.stage_rates": (["0,1", "-1"], ["()", "0.1,1"]),
}


def test_every_number_has_a_range():
    def is_number(annotation) -> bool:
        types = typing.get_args(annotation) or (annotation,)
        return int in types or float in types

    numbers = {path for path, annotation in fields().items() if is_number(annotation)}
    assert set(RANGES) == numbers


@pytest.mark.parametrize(
    ("path", "text"), [(path, text) for path, (bad, _) in RANGES.items() for text in bad]
)
def test_a_value_outside_its_range_is_refused_with_its_name_and_value(path, text):
    message = refusal(f"{path}={text}")
    name, _, value = message.partition(": must be ")
    value = value.rpartition(", not ")[2]
    got = [float(part) for part in value.strip("()").split(",") if part]
    assert name == path
    assert got == [float(part) for part in text.strip("()").split(",") if part]


@pytest.mark.parametrize(
    ("path", "text"), [(path, text) for path, (_, good) in RANGES.items() for text in good]
)
def test_the_ends_of_a_range_belong_to_it(path, text):
    value = attrgetter(path)(override(Config(), [f"{path}={text}"]))
    got = list(value) if isinstance(value, tuple) else [value]
    assert got == [float(part) for part in text.strip("()").split(",") if part]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("path", ["num_epochs", "ema_decay", "data.mean", "optimizer.weight_decay"])
def test_a_number_is_finite(path, text):
    assert re.match(f"{path}: must be .*finite.*, not .*{text}", refusal(f"{path}={text}"))


# --- rules between fields ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "parts", "repair"),
    [
        (
            ["accumulation_steps=3"],
            ["data.global_batch_size (128)", "accumulation_steps (3)"],
            "data.global_batch_size=96",
        ),
        (["data.crop=pad"], ["data.pad (0)", "data.crop", "'pad'"], "data.pad=1"),
        (["data.pad=2"], ["data.pad (2)", "data.crop", "'none'"], "data.crop=pad"),
        (["data.name=tfds"], ["data.path", "data.name", "'tfds'"], "data.path=mnist"),
        (
            ["data.eval_fraction=0.1"],
            ["data.eval_fraction (0.1)", "data.name 'folder'", "'digits'"],
            "data.name=folder",
        ),
        (
            ["data.name=folder", "data.eval_fraction=0.1", "data.eval_split=train"],
            ["data.eval_split ('train')", "data.train_split", "data.eval_fraction (0.1)"],
            "data.train_split=rest",
        ),
        (
            ["data.train_sizes=8,16"],
            ["data.train_sizes (8, 16)", "data.train_size_epochs ()", "data.image_size"],
            "data.train_size_epochs=0.1,0.2",
        ),
        (
            ["data.train_sizes=8", "data.train_size_epochs=1"],
            ["data.train_size_epochs (1.0,)", "num_epochs (1.0)", "data.image_size"],
            "num_epochs=2",
        ),
        (
            ["optimizer.warmup_epochs=2"],
            ["optimizer.warmup_epochs (2.0)", "num_epochs (1.0)"],
            "num_epochs=2",
        ),
        (
            ["optimizer.schedule=step"],
            ["optimizer.milestones ()", "optimizer.schedule", "'step'"],
            "optimizer.milestones=1",
        ),
        (
            ["optimizer.milestones=1"],
            ["optimizer.milestones (1.0,)", "optimizer.schedule", "'cosine'"],
            "optimizer.schedule=step",
        ),
    ],
)
def test_fields_that_contradict_each_other(assignments, parts, repair):
    message = refusal(*assignments)
    assert [part for part in parts if part not in message] == []
    # The rule holds for the whole: the order of the assignments does not matter.
    override(Config(), [*assignments, repair])
    override(Config(), [repair, *assignments])


@pytest.mark.parametrize("text", ["0.4,0.5", "()"])
def test_mean_and_std_of_different_lengths(text):
    message = refusal(f"data.mean={text}")
    assert message.startswith("data.mean")
    assert "data.std" in message


def test_mean_and_std_of_another_number_of_channels():
    config = override(Config(), ["data.mean=0.4,0.5,0.6", "data.std=0.1,0.2,0.3"])
    assert (config.data.mean, config.data.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("path", "text", "what", "near"),
    [
        ("model.name", "resnt20", "model", "resnet20"),
        ("model.name", "ResNet50", "model", "resnet50"),
        ("data.name", "digit", "data set", "digits"),
        ("data.name", "imagenet", "data set", "imagenet2012"),
    ],
)
def test_an_unknown_model_or_data_set_is_answered_with_the_nearest(path, text, what, near):
    assert refusal(f"{path}={text}") == (f"{path}: unknown {what} {text!r}; did you mean {near!r}?")


def test_an_unknown_data_set_like_no_other_is_answered_with_all():
    message = refusal("data.name=xyzzy")
    assert message == (
        "data.name: unknown data set 'xyzzy'; known: arrays, cifar10, digits, folder, "
        "imagenet2012, synthetic, tfds, tfrecord"
    )


# --- what names a run, and what another program reads -----------------------------------------

# Another valid value for every field, and whether a run with it computes something else.
OTHER_VALUES: dict[str, tuple[typing.Any, bool]] = {
    "seed": (1, True),
    "num_epochs": (2.0, True),
    "precision": ("mixed_bfloat16", True),
    "xla": ("on", True),
    "deterministic": (True, True),
    "sync_bn": (False, True),
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
    """`config` with one field changed, without the checks between fields."""
    section, _, name = path.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    part = dataclasses.replace(getattr(config, section), **{name: value})
    return dataclasses.replace(config, **{section: part})


def saved(config: Config) -> dict[str, typing.Any]:
    """As a config comes back from a run's folder."""
    return json.loads(json.dumps(config_lib.to_dict(config)))


def test_the_table_of_other_values_has_every_field():
    assert set(OTHER_VALUES) == set(fields())


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_hash_and_the_differences_see_what_changes_results(path):
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


def test_a_difference_tells_both_values():
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


def test_a_saved_config_has_every_field_by_its_path():
    config = load(str(ROOT / "configs/digits_resnet20.py"))
    got = saved(config)
    assert set(got) == set(fields())
    for path, value in got.items():
        expected = attrgetter(path)(config)
        assert value == (list(expected) if isinstance(expected, tuple) else expected)


def test_paths_that_others_rely_on():
    relied_on = {
        "seed",
        "num_epochs",
        "deterministic",
        "steps_per_loop",
        "xla",
        "precision",
        "accumulation_steps",
        "sync_bn",
        "model.name",
        "model.num_classes",
        "data.name",
        "data.path",
        "data.global_batch_size",
        "data.image_size",
        "optimizer.name",
        "optimizer.learning_rate",
    }
    assert relied_on - set(fields()) == set()


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_importing_it_does_not_import_tensorflow(module):
    command = (
        f"import sys, {module}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'tensorflow', 'tf_keras', 'keras', 'tensorflow_datasets', 'numpy', 'trainer'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "['trainer']"

"""The fields: types, ranges, known names, rules between fields."""

import dataclasses
import importlib
import re
import subprocess
import sys
import typing
from operator import attrgetter

import pytest

from tests.config.common import ROOT, fields, refusal
from trainer.config import Config, DataConfig, ModelConfig, OptimizerConfig, override
from trainer.errors import UserError

WITHOUT_TENSORFLOW = ("trainer.config", "trainer.run.folder", "trainer.data", "trainer.models")


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
    # The rule is checked at the end, so the order of the assignments does not matter.
    override(Config(), [*assignments, repair])
    override(Config(), [repair, *assignments])


def test_images_are_not_held_out_for_no_evaluation():
    message = refusal("data.name=folder", "data.eval_fraction=0.1", "data.eval_split=none")
    assert message.startswith("data.eval_fraction (0.1): ")
    assert "data.eval_split is none" in message


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
def test_an_unknown_model_or_data_set_suggests_the_nearest(path, text, what, near):
    assert refusal(f"{path}={text}") == (f"{path}: unknown {what} {text!r}; did you mean {near!r}?")


def test_an_unknown_data_set_like_no_other_lists_all():
    message = refusal("data.name=xyzzy")
    assert message == (
        "data.name: unknown data set 'xyzzy'; known: arrays, cifar10, digits, folder, "
        "imagenet2012, synthetic, tfds, tfrecord"
    )


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """A folder on Python's path, with modules that must be found without running them."""
    for name in (
        "package/__init__.py",
        "package/module.py",
        "folder/module.py",
        "a/b/c.py",
        "plain.py",
    ):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('was run')\n")
    (tmp_path / "own" / "empty" / "below").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    importlib.invalidate_caches()


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("path", ["model.name", "data.name"])
@pytest.mark.parametrize(
    "name",
    ["package.module", "folder.module", "a.b.c", "tests.config.common", "trainer.config.fields"],
)
def test_a_name_with_a_dot_is_a_module_that_is_found_and_not_run(path, name):
    assert attrgetter(path)(override(Config(), [f"{path}={name}"])) == name
    assert not {"package", "folder", "a"} & {module.partition(".")[0] for module in sys.modules}


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("nowhere.module", "nowhere"),
        ("package.other", "package.other"),
        ("package.module.deeper", "package.module.deeper"),
        ("plain.py", "plain.py"),
        ("plain.", "plain."),
        (".plain", ".plain"),
        ("package/other.py", "package/other.py"),
        ("empty.below", "empty.below"),
        ("trainer.config.field", "trainer.config.field"),
        ("os.path.x", "os.path.x"),
    ],
)
def test_a_missing_module_is_named(name, missing):
    assert refusal(f"model.name={name}") == (
        f"model.name: unknown model {name!r}: a name with a dot is a Python module, and there is "
        f"no module {missing} in this folder or on Python's path"
    )


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("what", ["model", "data set"])
@pytest.mark.parametrize(
    "name",
    ["package.module.py", "package/module.py", "./package/module.py", "package/module"],
)
def test_a_file_s_name_is_answered_with_the_module_s(what, name):
    field = "model.name" if what == "model" else "data.name"
    expected = f"{field}: unknown {what} {name!r}; did you mean 'package.module'?"
    assert refusal(f"{field}={name}") == expected


def test_paths_that_others_rely_on():
    relied_on = {
        "seed",
        "num_epochs",
        "deterministic",
        "steps_per_loop",
        "xla",
        "precision",
        "accumulation_steps",
        "model.name",
        "model.num_classes",
        "model.sync_batch_norm",
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

"""Text as values: what each type accepts, and how it refuses the rest."""

from operator import attrgetter

import pytest

from tests.config.common import refusal
from trainer.config import Config, override
from trainer.config.text import suggest
from trainer.registry import MODELS, SOURCES


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
        ("model.sync_batch_norm", "FALSE", False),
        ("ema_decay", "0.999", 0.999),
        ("ema_decay", "none", None),
        ("ema_decay", "None", None),
        ("optimizer.clip_norm", "1", 1.0),
        ("data.path", "mnist", "mnist"),
        ("model.num_classes", "none", None),
        ("model.num_classes", "37", 37),
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
        ("model.num_classes", "all", "a whole number or none"),
        ("data.mean", "0.5,x", "a tuple, each a finite number"),
        ("steps_per_loop", "Auto", "a whole number or 'auto'"),
        ("steps_per_loop", "2.5", "a whole number or 'auto'"),
        ("precision", "float16", "'float32' or 'mixed_bfloat16' or 'mixed_float16'"),
        ("xla", "true", "'auto' or 'on' or 'off'"),
        ("optimizer.name", "adam", "'sgd' or 'adamw'"),
    ],
)
def test_text_that_is_not_a_value_of_the_type(path, text, rule):
    assert refusal(f"{path}={text}") == f"{path}: must be {rule}, not {text!r}"


@pytest.mark.parametrize(
    ("value", "known", "expected"),
    [
        ("ResNet50", MODELS, "did you mean 'resnet50'?"),
        ("resnt20", MODELS, "did you mean 'resnet20'?"),
        ("wrn-28-10", MODELS, "did you mean 'wrn28_10'?"),
        ("resnext50", MODELS, "did you mean 'resnext50_32x4d'?"),
        (
            "mobilenetv3",
            MODELS,
            "did you mean 'mobilenetv3_large_100' or 'mobilenetv3_small_100'?",
        ),
        ("imagefolder", SOURCES, "did you mean 'folder'?"),
        ("imagenet", SOURCES, "did you mean 'imagenet2012'?"),
    ],
)
def test_the_names_most_like_a_value(value, known, expected):
    assert suggest(value, known) == expected


@pytest.mark.parametrize("value", ["densenet121", "efficientnet_b0", "vit", ""])
def test_a_value_like_no_name_lists_them(value):
    assert suggest(value, MODELS) == f"known: {', '.join(MODELS)}"

"""Text as values: what each type accepts, and how it refuses the rest."""

from operator import attrgetter

import pytest

from tests.config.common import refusal
from trainer.config import Config, override


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

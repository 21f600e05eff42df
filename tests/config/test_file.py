"""Config files, and `--set`."""

import dataclasses
import re

import pytest

from tests.config.common import ROOT, refusal
from trainer.config import load, override
from trainer.errors import UserError

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def test_the_recipes_exist():
    assert {"digits_resnet20.py", "cifar10_resnet20.py", "imagenet_resnet50.py"} <= {
        path.name for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_validates(path):
    config = load(str(path))
    config.validate()
    assert path.stem.endswith(config.model.name)  # a file is named after its model
    what = path.stem.partition("_")[0]
    assert config.data.name.startswith({"photos": "folder"}.get(what, what))
    assert (config.model.num_classes is None) == (what == "photos")


def test_a_missing_file_lists_the_known_ones(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "good.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load("configs/god.py")
    known = ", ".join(sorted(["configs/good.py", *(path.stem for path in CONFIGS)]))
    assert str(caught.value) == (
        f"--config=configs/god.py: cannot be read (No such file or directory); known: {known}"
    )


def test_a_recipe_is_named_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load(str(ROOT / "configs/digits_resnet20.py"))
    assert load("digits_resnet20") == load("configs/digits_resnet20.py") == expected


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
            "from trainer.config import Config\n\ndef get_config():\n    return Config(colour=1)\n",
            "get_config() failed: TypeError: Config.__init__() got an unexpected keyword argument "
            "'colour'",
        ),
        (
            "from trainer.config import Config\n\ndef get_config():\n    return Config(seed=-1)\n",
            "seed: must be in [0, 2**31), not -1",
        ),
        (
            "from trainer.config import Config\ndef get_config():\n    return Config(sync_bn=1)\n",
            "get_config() failed: TypeError: Config.__init__() got an unexpected keyword argument "
            "'sync_bn'; it is now model.sync_batch_norm",
        ),
        ("raise ValueError('a\\nb')\n", "ValueError: a b"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_broken_file_is_reported_with_its_name_and_the_reason(tmp_path, text, reason):
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


def test_only_the_named_fields_change_and_the_last_assignment_holds():
    before = load(str(ROOT / "configs/digits_resnet20.py"))
    after = override(before, ["seed=1", "optimizer.momentum=0.8", "seed=2"])
    optimizer = dataclasses.replace(before.optimizer, momentum=0.8)
    assert after == dataclasses.replace(before, seed=2, optimizer=optimizer)


def test_an_assignment_without_equals_sign():
    assert refusal("seed 3") == "--set seed 3: must be FIELD=VALUE; did you mean --set seed=3?"
    for nothing in ("", "=3", "xyzzy"):
        typed = f"--set {nothing}".rstrip()
        assert refusal(nothing) == f"{typed}: must be FIELD=VALUE; --help_config lists all fields"


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("optimizer.learning_rte=0.2", "optimizer.learning_rate=0.2"),
        ("learning_rate=0.2", "optimizer.learning_rate=0.2"),
        ("optimiser.momentum=0.8", "optimizer.momentum=0.8"),
        ("data.num_classes=3", "model.num_classes=3"),
        ("input_pipeline.flip=true", "data.flip=true"),
        ("Seed=7", "seed=7"),
        ("Optimizer.Learning-Rate=0.2", "optimizer.learning_rate=0.2"),
        ("data.learning_rate=0.2", "optimizer.learning_rate=0.2"),
        ("model.nam=resnet18", "model.name=resnet18"),
        ("path=a b", "data.path='a b'"),
        ("classes=1", "model.num_classes=… (must be at least 2, not 1)"),
        ("flip=1", "data.flip=… (must be true or false, not '1')"),
    ],
)
def test_an_unknown_field_suggests_the_nearest_with_the_value(typed, near):
    name = typed.partition("=")[0]
    assert refusal(typed) == f"{name}: unknown field; did you mean --set {near}?"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("batch_size=64", "did you mean --set data.global_batch_size=64 ("),
        ("lr=0.1", "did you mean --set optimizer.learning_rate=0.1?"),
        ("optimizer.lr=0.1", "did you mean --set optimizer.learning_rate=0.1?"),
        ("epochs=3", "did you mean --set num_epochs=3?"),
        ("optimizer=adam", "did you mean --set optimizer.name=… (must be 'sgd' or 'adamw', not"),
        ("optimizer=adamw", "did you mean --set optimizer.name=adamw?"),
        ("data=cifar10", "did you mean --set data.name=cifar10?"),
        ("data=/x", "did you mean --data_dir=/x?"),
        ("model=resnet50", "did you mean --set model.name=resnet50?"),
        ("num_workers=4", "reading and decoding run in parallel; nothing has to be set"),
        ("name=x", "a run's folder: --workdir=…; fields: --set model.name=…"),
        ("nam=resnet18", "did you mean --set model.name=resnet18?"),
    ],
)
def test_a_name_of_others_gets_ours(typed, expected):
    name = typed.partition("=")[0]
    assert refusal(typed).startswith(f"{name}: unknown field; {expected}")


def test_a_renamed_field_names_its_new_name():
    assert refusal("sync_bn=false") == "sync_bn: is now model.sync_batch_norm"


@pytest.mark.parametrize("name", ["xyzzy", "class_weights", "model.class_weights", "scale"])
def test_an_unknown_field_like_no_other_suggests_none(name):
    assert refusal(f"{name}=1") == f"{name}: unknown field; --help_config lists all fields"


@pytest.mark.parametrize("path", ["optimizer", "model"])
def test_a_section_is_not_a_field(path):
    assert refusal(f"{path}=sgd").startswith(f"{path}: unknown field; ")

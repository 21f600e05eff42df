"""What a run was trained with, and the checks of `model.weights` before TensorFlow."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.models.test_parity import config_of
from tests.parity.cases import CASES
from tests.small_models import CONVNET
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.weights.__main__ import known_hashes
from trainer.models.weights.early import check_weights
from trainer.models.weights.export import export
from trainer.models.weights.known_models import KNOWN_MODELS
from trainer.models.weights.names import libraries, named_variables
from trainer.models.weights.saved import read_trained
from trainer.models.weights.tensor_file import SUFFIXES, hash_of_model
from trainer.models.weights.trained import find_trained
from trainer.registry import MODELS


@pytest.fixture(scope="module")
def run(run_folder, tmp_path_factory) -> Path:
    """A run's folder as training leaves it: config.json holds what the checkpoints hold."""
    path = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(run_folder, path)
    found = read_trained(run_folder)
    assert found is not None
    (path / "config.json").write_text(json.dumps(found.metadata))
    return path


def test_a_run_its_checkpoints_and_its_export_tell_the_same(run, run_folder, small_config, digits):
    exported = run / "model.safetensors"
    export(run, exported)
    of_run = [
        run,
        run / "checkpoints",
        run / "checkpoints" / "best",
        run / "checkpoints" / "ckpt-4",
        run / "checkpoints" / "ckpt-4.index",
        exported,
    ]
    lone = [run_folder, run_folder / "checkpoints" / "best" / "ckpt-2"]  # without config.json
    assert [path for path in lone if find_trained(path)] == []
    for found in [*map(find_trained, of_run), *map(read_trained, [*of_run, *lone])]:
        assert found is not None
        assert found.config == small_config
        assert found.class_names == digits.class_names
        assert found.channels == 1


def test_without_a_number_of_classes_it_is_that_of_the_names(tmp_path, small_config):
    values = config_lib.to_dict(small_config) | {"model.num_classes": None}
    metadata = {"config": values, "class_names": ["a", "b"], "channels": 3}
    (tmp_path / "config.json").write_text(json.dumps(metadata))
    found = find_trained(tmp_path)
    assert found is not None
    assert found.config.model.num_classes == 2


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"config": "resnet50"},
        {"config": '{"architecture": "resnet50"}', "class_names": '["a"]', "channels": "3"},
        {"config": '{"model.name": "resnet50"}', "class_names": "[1, 2]", "channels": "3"},
        {"config": '{"model.name": "resnet50"}', "class_names": '["a"]', "channels": "null"},
    ],
)
def test_another_library_s_file_tells_nothing(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2)}, path, metadata)
    assert read_trained(path) is None


def test_a_damaged_config_file_is_not_needed(run_folder, small_config, tmp_path):
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"config": {')
    assert find_trained(tmp_path) is None
    found = read_trained(tmp_path)
    assert found is not None
    assert found.config == small_config
    check_weights(weights_of(small_config, tmp_path))


# --- early checks -----------------------------------------------------------------------------


def weights_of(config: Config, path: object) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(path)))


def check(path: object, *settings: str) -> str:
    """Returns the refusal, or an empty text."""
    try:
        check_weights(config_lib.override(Config(), [f"model.weights={path}", *settings]))
    except UserError as error:
        return str(error)
    return ""


def test_what_load_weights_takes_passes(run, run_folder, small_config, tmp_path):
    """Also what other checks refuse later, such as a .pth that is not one."""
    exported = tmp_path / "model.safetensors"
    export(run, exported)
    pth = tmp_path / "w.pth"
    pth.write_bytes(b"anything")
    checkpoints = run / "checkpoints"
    for path in (
        *(run, checkpoints, checkpoints / "best", checkpoints / "ckpt-4"),
        *(run_folder, run_folder / "checkpoints" / "ckpt-4.index", exported, pth),
    ):
        check_weights(weights_of(small_config, path))
    check_weights(small_config)


def test_a_path_that_holds_no_weights_is_refused(tmp_path):
    expected = f"must be weights ({', '.join(SUFFIXES)}), a run's folder or a checkpoint, but"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "w.h5").write_bytes(b"x")
    (tmp_path / "w.safetensors").write_bytes(b"x" * 100)
    folder, file = tmp_path / "no", tmp_path / "w.h5"
    assert check(folder) == f"model.weights: {folder}: {expected} it does not exist"
    assert check(tmp_path) == f"model.weights: {tmp_path}: {expected} it holds no checkpoint"
    assert check(file) == f"model.weights: {file}: {expected} it is another kind of file"
    for name in ("no.safetensors", "no.PTH"):
        missing = tmp_path / name
        reason = "cannot be read (No such file or directory)"
        assert check(missing) == f"model.weights: {missing}: {reason}"
    assert "w.safetensors: is not a safetensors file, or damaged" in check(
        tmp_path / "w.safetensors"
    )


def test_a_run_of_another_model_is_refused(run, small_config, tmp_path):
    exported = tmp_path / "model.safetensors"
    export(run, exported)
    ours = small_config.model.name
    for path, origin in ((run, run / "config.json"), (exported, exported)):
        assert check(path, "model.name=resnet50") == (
            f"model.weights: {origin}: was trained with model.name={ours}, and here it is "
            f"resnet50: --set model.name={ours}"
        )
        assert "with model.blur_pool=false, and here it is true: --set model.blur_pool=false" in (
            check(path, f"model.name={ours}", "model.blur_pool=true")
        )


def save_names(path: Path, name: str, library: str, classes: int, change=None) -> Path:
    """Writes a model's tensors as another library would."""
    config = config_lib.override(
        Config(), [f"model.name={name}", f"model.num_classes={classes}", "data.image_size=32"]
    )
    named = named_variables(build_model(config, channels=3), libraries(name)[library])
    tensors = {key: one.to_torch() for key, one in named.items()}
    tensors["bn1.num_batches_tracked"] = np.array(1)
    save_file(change(tensors) if change else tensors, path)
    return path


def test_a_file_of_another_known_model_is_refused_by_its_names(tmp_path):
    path = save_names(tmp_path / "w.safetensors", "mobilenetv2_100", "torchvision", 7)
    expected = (
        f"model.weights: {path}: holds the tensors of mobilenetv2_100 by torchvision's names, and "
        f"model.name is resnet50: --set model.name=mobilenetv2_100"
    )
    assert check(path, "model.name=resnet50") == expected
    assert "--set model.name=mobilenetv2_100" in check(path, "model.name=mobilenetv2_050")
    assert check(path, "model.name=mobilenetv2_100") == ""
    assert check(path, f"model.name={CONVNET}") == ""  # its names are not known
    parallel = save_names(
        tmp_path / "parallel.safetensors", "mobilenetv2_100", "timm", 3,
        lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    )  # fmt: skip
    assert "of mobilenetv2_100 by timm's names" in check(parallel, "model.name=resnet50")


def test_models_that_share_their_tensors_are_not_confused(tmp_path):
    """resnet50_v1 has resnet50's tensors; those of wide_resnet50_2 have the same names only."""
    path = save_names(tmp_path / "w.safetensors", "resnet50", "timm", 5)
    for name in ("resnet50", "resnet50_v1"):
        assert check(path, f"model.name={name}") == ""
    both = "holds the tensors of resnet50 or resnet50_v1 by timm's names, and model.name is"
    for name in ("wide_resnet50_2", "resnet18"):
        assert f"{both} {name}: --set model.name=one of them" in check(path, f"model.name={name}")

    def beheaded(tensors):
        return {name: value for name, value in tensors.items() if not name.startswith("fc.")}

    path = save_names(tmp_path / "headless.safetensors", "resnet20", "timm", 5, beheaded)
    assert check(path, "model.name=resnet50") == ""  # load_weights refuses it
    assert check(path, "model.name=resnet20") == ""


GENERATE = "python -m trainer.models.weights > trainer/models/weights/known_models.py"


def test_every_known_model_has_its_line():
    assert {name for name, _ in KNOWN_MODELS} == set(MODELS), f"run: {GENERATE}"


_QUICK = ("resnet20", "mobilenetv3_small_100")


@pytest.mark.parametrize(
    "name",
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_the_lines_are_up_to_date(name):
    found = {key: digest for key, digest in KNOWN_MODELS.items() if key[0] == name}
    assert known_hashes(name) == found, f"run: {GENERATE}"


def test_a_model_s_hash_depends_on_neither_classes_channels_nor_settings():
    case = next(case for case in CASES if case.key == "timm resnet18 model.blur_pool=true")
    config = config_of(case)  # 10 classes
    model = build_model(config, channels=1)
    named = named_variables(model, libraries("resnet18")["timm"])
    digest = hash_of_model({name: one.torch_shape for name, one in named.items()})
    assert digest == KNOWN_MODELS["resnet18", "timm"]

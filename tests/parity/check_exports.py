"""Checks with PyTorch that timm loads our exports and that we read its files.

    python -m tests.parity.check_exports FOLDER

Run it in the environment of tests/parity/requirements.txt, after `python -m tests.parity.exports
FOLDER` in ours.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import tests.parity.reference  # first: it makes torchvision importable  # noqa: F401

import timm  # isort: skip
from tests.parity.cases import CLASSES
from trainer.errors import UserError
from trainer.models.weights import tensor_file


def check_that_timm_loads_our_exports(folder: Path) -> None:
    """Checks all names, all shapes, and that the logits agree."""
    paths = sorted(folder.glob("*.safetensors"))
    assert paths, f"{folder}: no exports"
    for path in paths:
        model = timm.create_model(path.stem, num_classes=CLASSES).eval()
        model.load_state_dict(load_file(path), strict=True)
        ours = np.load(path.with_suffix(".npz"))
        with torch.no_grad():
            logits = model(torch.from_numpy(ours["images"]).permute(0, 3, 1, 2)).numpy()
        apart = np.abs(logits - ours["logits"]).max() / np.abs(logits).max()
        assert apart < 1e-4, (path.stem, apart)
        print(f"{path.stem}: loaded by timm, logits differ by {apart:.1e}")


def check_that_we_read_its_formats(folder: Path) -> None:
    """Checks the forms that PyTorch and trainers save: plain, nested, parallel, half precision,
    each in the new and in the old format."""
    state = timm.create_model("resnet18", num_classes=CLASSES).state_dict()
    parallel = {f"module.{name}": value for name, value in state.items()}
    halves = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in state.items()
    }
    variants = {
        "plain.pth": (state, state),
        "nested.pt": ({"epoch": 3, "state_dict": state, "args": {"lr": 0.1}}, state),
        "average.pth.tar": ({"state_dict": halves, "state_dict_ema": state}, state),
        "parallel.bin": ({"model": parallel}, state),
        "halves.pth": (halves, halves),
    }
    for name, (content, expected) in variants.items():
        for old in (False, True):
            path = folder / name
            torch.save(content, path, _use_new_zipfile_serialization=not old)
            tensors = tensor_file.read(path)
            assert tensors.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_array_equal(tensors[key], value.float().numpy())
        print(f"{name}: read, in both formats")


class _Evil:
    """Creates a file if it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def check_that_nothing_in_a_file_runs(folder: Path) -> None:
    for name, save in (("zip.pth", torch.save), ("raw.pth", _save_raw)):
        trace, path = folder / f"ran-{name}", folder / name
        save({"a": torch.zeros(2), "b": _Evil(trace)}, path)
        try:
            tensor_file.read(path)
        except UserError as error:
            assert "cannot be read as weights alone" in str(error), error
        else:
            raise AssertionError(f"{path}: was read")
        assert not trace.exists(), f"{path}: ran code"
        print(f"{name}: refused, and did not run")


def _save_raw(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def main() -> None:
    folder = Path(sys.argv[1])
    check_that_we_read_its_formats(folder)
    check_that_nothing_in_a_file_runs(folder)
    check_that_timm_loads_our_exports(folder)


if __name__ == "__main__":
    main()

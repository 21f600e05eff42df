"""The short names of models and data sets, and the module that each stands for.

Strings, so that the config can check a name without importing TensorFlow.
"""

import importlib.util
import pkgutil
import sys
from importlib.machinery import ModuleSpec

_RESNET = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet50_v1", "resnet101_v1", "resnet152_v1"),
    *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d", "resnet200d"),
    *("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152"),
    *("resnetrs50", "resnetrs101", "resnetrs152", "resnetrs200"),
    *("resnetrs270", "resnetrs350", "resnetrs420"),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
)
_WIDE_RESNET = ("wrn16_4", "wrn16_8", "wrn28_2", "wrn28_10", "wrn40_2", "wrn40_4")
_VGG = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
_MOBILENET = (
    *("mobilenetv2_050", "mobilenetv2_100", "mobilenetv2_140"),
    *("mobilenetv3_large_100", "mobilenetv3_small_100"),
)

MODELS: dict[str, str] = {
    **dict.fromkeys(_RESNET, "trainer.models.resnet"),
    **dict.fromkeys(_WIDE_RESNET, "trainer.models.wide_resnet"),
    **dict.fromkeys(_VGG, "trainer.models.vgg"),
    **dict.fromkeys(_MOBILENET, "trainer.models.mobilenet"),
}

SOURCES: dict[str, str] = {
    "digits": "trainer.data.tfds",
    "cifar10": "trainer.data.tfds",
    "imagenet2012": "trainer.data.tfds",
    "tfds": "trainer.data.tfds",
    "folder": "trainer.data.folder",
    "tfrecord": "trainer.data.tfrecord",
    "arrays": "trainer.data.arrays",
    "synthetic": "trainer.data.synthetic",
}


def module_of(name: str, known: dict[str, str]) -> str:
    """Returns the module that a name stands for: a short name of `known`, or a dotted name.

    A name with a dot, such as `my_models.tinynet`, is a module already: any that Python can import.
    """
    return known.get(name, name)


def missing_module(name: str) -> str | None:
    """Returns the first part of a dotted name that Python does not find, or None if it finds all.

    Runs no code: neither the module's nor that of the packages it is in, which may import
    TensorFlow.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return name
    folders: list[str] = []
    is_code = False
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        module = sys.modules.get(part)
        if module is not None:
            folders, is_code = [*getattr(module, "__path__", [])], True
            continue
        specs = [importlib.util.find_spec(part)] if end == 1 else _specs_in(folders, part)
        found = [spec for spec in specs if spec is not None]
        if not found:
            return part
        code = [spec for spec in found if spec.loader is not None]
        is_code = bool(code)  # else folders without __init__.py, which count together
        folders = [f for s in code[:1] or found for f in s.submodule_search_locations or ()]
    return None if is_code else name


def _specs_in(folders: list[str], name: str) -> list[ModuleSpec | None]:
    finders = [pkgutil.get_importer(folder) for folder in folders]
    return [finder.find_spec(name) for finder in finders if finder is not None]

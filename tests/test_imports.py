"""Who may import whom, as the design has it, read from the sources with `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer and the layers it may import, all of them further up; within one, files are free.
ALLOWED = {
    "trainer": "",
    "errors": "",
    "stopwatch": "",
    "recipes": "trainer",
    "registries": "",  # trainer/data/__init__.py and trainer/models/__init__.py: dicts of names
    "config": "errors registries",
    "shared_flags": "",
    "tensor_file": "errors",
    "cli": "errors",
    "cluster": "errors config",
    "tpu": "errors",
    "run_folder": "errors config",
    "losses": "errors config",
    "optim": "errors config",
    "models": "errors registries config",
    "data": "errors registries config",
    "state": "errors config models optim",
    # Of optim, the type of a schedule; of models, their randomness and their statistics.
    "steps": "errors config losses models optim state",
    "weights": "errors config tensor_file models",
    "anatomy": "models",
    "feature_maps": "models anatomy",
    "memory": "config losses models optim steps",  # of steps, what comes before the model
    "report": "config models anatomy feature_maps memory",
    "checkpoint": "errors config data state",  # of data, what a source says of itself
    "summaries": "errors config run_folder steps",  # of steps, the metrics of a loop
    "bad_examples": "",
    "strategy": "errors config cluster tpu steps",  # of steps, what XLA compiles of one
    "divergence": "errors config data state steps checkpoint",
    "train": "errors stopwatch config run_folder losses optim models data state steps checkpoint "
    "summaries bad_examples strategy divergence weights",
    "preflight": "errors config shared_flags cli optim state steps strategy",
    "main": "errors stopwatch config shared_flags cli cluster tpu run_folder strategy train",
    "prepare": "errors config shared_flags cli run_folder data",
    "export": "errors shared_flags cli tensor_file models weights",
    "inspect": "errors config shared_flags cli models data steps weights feature_maps report",
}
WITHOUT_TENSORFLOW = (
    *("errors", "stopwatch", "recipes", "registries", "config", "shared_flags", "tensor_file"),
    *("cli", "cluster", "tpu", "run_folder"),
)


def imports(source: str) -> set[str]:
    """Every name imported, at any depth; of `from a import b` it is `a.b`, b a module or not."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def layer(name: str) -> str:
    """Of a dotted name in trainer."""
    parts = name.split(".")[1:] or ["trainer"]
    if parts[0] in ("data", "models"):
        is_file = len(parts) > 1 and (ROOT / "trainer" / parts[0] / f"{parts[1]}.py").exists()
        return parts[0] if is_file else "registries"
    return parts[0]


def modules() -> dict[str, str]:
    """The dotted name of every file of trainer/, and its text."""
    paths = (ROOT / "trainer").rglob("*.py")
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items()}


def test_the_layers_have_a_direction():
    order = list(ALLOWED)
    for name, below in ALLOWED.items():
        assert set(below.split()) <= set(order[: order.index(name)]), name


@pytest.mark.parametrize(("name", "source"), modules().items(), ids=list(modules()))
def test_a_module_imports_only_layers_below_it(name, source):
    assert layer(name) in ALLOWED, "a new module: give it a line in ALLOWED"
    found = imports(source)
    used = {layer(other) for other in found if f"{other}.".startswith("trainer.")}
    assert used - {layer(name)} <= set(ALLOWED[layer(name)].split())
    assert packages(found) & {"", "configs", "benchmarks", "tests"} == set()  # "": a relative one
    if layer(name) in WITHOUT_TENSORFLOW:
        libraries = {"tensorflow", "tf_keras", "keras", "tensorflow_datasets"}
        assert packages(found) & libraries == set()


@pytest.mark.parametrize("package", ["data", "models"])
def test_names_loaded_on_demand_stay_within_their_package(package):
    nodes = ast.walk(ast.parse((ROOT / "trainer" / package / "__init__.py").read_text()))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    named = [value for value in constants if str(value).startswith("trainer.")]
    assert named
    assert {layer(name) for name in named} == {package}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_imports_only_the_config(path):
    assert {name.rpartition(".")[0] for name in imports(path.read_text())} == {"trainer.config"}


def uses_another_keras(source: str) -> bool:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    names = imports(source) | {ast.unparse(node) for node in nodes}
    others = ("keras.", "tensorflow.keras.", "tf.keras.")
    return any(f"{name}.".startswith(others) for name in names)


@pytest.mark.parametrize("folder", ["trainer", "configs", "benchmarks", "tests"])
def test_there_is_one_keras(folder):
    others = {"keras_model.py", "keras_loop.py"}  # peers in benchmarks/peers, which are another one
    paths = [p for p in sorted((ROOT / folder).rglob("*.py")) if p.name not in others]
    assert paths
    assert [path for path in paths if uses_another_keras(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trainer.train as t, tensorflow", {"trainer.train", "tensorflow"}),
        ("def f():\n    from trainer import train as t", {"trainer.train"}),
        ("if 1:\n    from trainer.data.order import uniform", {"trainer.data.order.uniform"}),
        ("from . import data", {"..data"}),
    ],
)
def test_no_import_escapes_the_reader(source, found):
    assert imports(source) == found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import keras", True),
        ("from keras import layers", True),
        ("import tensorflow.keras.layers", True),
        ("from tensorflow import keras", True),
        ("import tensorflow as tf\ndef f(): return tf.keras.layers.Dense(1)", True),
        ("import tf_keras\nfrom tf_keras import layers\ntf_keras.layers.Dense(1)", False),
    ],
)
def test_no_other_keras_escapes_the_reader(source, expected):
    assert uses_another_keras(source) == expected

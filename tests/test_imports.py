"""Which module may import which: checks the design's rules on the sources, with `ast`."""

import ast
from pathlib import Path

import pytest

from trainer.registry import MODELS, SOURCES

ROOT = Path(__file__).parents[1]

# The rooms of trainer/, from the ground up. A file imports from its own room and from the floors
# below; rooms on one floor do not import each other. `verbs`: the commands.
FLOORS = (
    {"errors", "files", "registry", "units"},
    {"config", "user_module"},
    {"failures"},
    {"data", "models"},
    {"step"},
    {"devices", "insight"},
    {"run", "cli"},
    {"verbs"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
VERBS = {"main", "inspect", "prepare", "export", "preflight", "runs"}
# Rooms and files that a command can use before it imports TensorFlow.
WITHOUT_TENSORFLOW = (
    *("errors", "files", "registry", "units", "config", "user_module", "cli"),
    *("models.weights.early", "models.weights.heads", "models.weights.identity"),
    *("models.weights.known_models", "models.weights.tensor_file", "models.weights.trained"),
    *("data.decoder_log", "data.splits", "devices.choice", "devices.cluster", "devices.tpu"),
    *("run.best", "run.environment", "run.folder", "run.history", "run.identity", "run.provenance"),
    "run.stopwatch",
)


def imports(source: str) -> set[str]:
    """Returns every imported name, at any depth; `a.b` for `from a import b`, module or not."""
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


def room(name: str) -> str:
    """Returns the room of a dotted name in trainer."""
    first = name.split(".")[1] if "." in name else ""
    return "verbs" if first in VERBS else first


def upward(name: str, source: str) -> set[str]:
    """Returns a trainer file's imports from neither its room nor a floor below."""
    used = {other for other in imports(source) if other.startswith("trainer.")}
    if room(name) == "verbs":  # `prepare` does not call `main`, but preflight is a folder
        verb = name.split(".")[1]
        own = {other for other in used if other.split(".")[1] == verb}
    else:
        own = {other for other in used if room(other) == room(name)}
    return {other for other in used - own if FLOOR_OF[room(other)] >= FLOOR_OF[room(name)]}


def modules() -> dict[str, str]:
    """Returns the text of every file of trainer/, by its dotted name."""
    paths = (ROOT / "trainer").rglob("*.py")
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path.read_text() for path, name in names.items()}


@pytest.mark.parametrize(("name", "source"), modules().items(), ids=list(modules()))
def test_a_module_imports_only_what_is_below_it(name, source):
    found = imports(source)
    if name != "trainer":
        assert room(name) in FLOOR_OF, "a new room: give it a floor; a new verb: name it in VERBS"
        assert upward(name, source) == set()
    assert (
        packages(found) & {"", "configs", "benchmarks", "tests"} == set()
    )  # "": a relative import
    prefixes = [f"trainer.{free}." for free in WITHOUT_TENSORFLOW]
    if any(f"{name}.".startswith(prefix) for prefix in prefixes):
        libraries = {"tensorflow", "tf_keras", "keras", "tensorflow_datasets"}
        if name == "trainer.data.splits.tfds":  # imports TensorFlow only when it reads
            libraries.remove("tensorflow_datasets")
        assert packages(found) & libraries == set()


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("trainer.step.state", "from trainer.run.log import RunLog", "trainer.run.log.RunLog"),
        ("trainer.models.vgg", "import trainer.data.order", "trainer.data.order"),
        ("trainer.config.fields", "from trainer.models import vgg", "trainer.models.vgg"),
        ("trainer.insight.memory", "import trainer.devices.tpu", "trainer.devices.tpu"),
        ("trainer.prepare", "def f():\n    import trainer.export", "trainer.export"),
        ("trainer.preflight.search", "import trainer.preflight.report", None),
        ("trainer.run.train", "import trainer.run.log, trainer.step.state", None),
        ("trainer.export", "from trainer.run.folder import RunFolder", None),
    ],
)
def test_a_planted_arrow_is_found(name, source, wrong):
    assert upward(name, source) == ({wrong} if wrong else set())


def test_every_room_has_its_floor():
    folders = {path.parent.name for path in (ROOT / "trainer").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "trainer").glob("*.py")} - {"__init__"}
    assert folders | files == (set(FLOOR_OF) - {"verbs"}) | VERBS


def test_every_source_has_its_split():
    for module in SOURCES.values():
        assert f"trainer.data.splits.{module.rpartition('.')[2]}" in modules()


def test_short_names_stand_for_modules_of_their_room():
    for names, expected in ((MODELS, "models"), (SOURCES, "data")):
        assert {room(module) for module in names.values()} == {expected}
        assert set(names.values()) <= set(modules())


def defined(source: str) -> set[str]:
    """Every name that a module has at its top level, however deep in `if` or `try`."""
    found = imports_as(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def imports_as(source: str) -> set[str]:
    """The names that imports give."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in nodes for alias in node.names}


def missing(source: str) -> set[str]:
    """The names that a file imports from our modules and that are not there."""
    found = set()
    for name in imports(source):
        module, _, last = name.rpartition(".")
        if not module or module.partition(".")[0] not in OURS:
            continue
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        is_module = (path / last).is_dir() or (path / f"{last}.py").exists()
        if not is_module and not (file.exists() and last in defined(file.read_text())):
            found.add(name)
    return found


OURS = ("trainer", "launch", "tests", "benchmarks", "configs")


@pytest.mark.parametrize("folder", OURS)
def test_imported_names_exist(folder):
    """The type checker cannot say: TensorFlow's lazy modules make it silent on attributes."""
    wrong = {str(path): missing(path.read_text()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert missing("from trainer.run.train import Summry") == {"trainer.run.train.Summry"}
    assert missing("import trainer.steps") == {"trainer.steps"}


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
    others = {"keras_model.py", "keras_loop.py"}  # peers in benchmarks/peers that use Keras 3
    paths = [p for p in sorted((ROOT / folder).rglob("*.py")) if p.name not in others]
    assert paths
    assert [path for path in paths if uses_another_keras(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trainer.run.train as t, tensorflow", {"trainer.run.train", "tensorflow"}),
        ("def f():\n    from trainer import run as r", {"trainer.run"}),
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

"""The compiled loops need no host work between two steps, on a TPU as well.

The graphs are traced under TensorFlow's own TPUStrategy, with CPU devices in place of cores. This
way it can trace a complete loop and hold variables, but cannot run a step. Whether XLA can compile
a step is checked with TensorFlow's lowering for CPUs.
"""

import dataclasses
import functools
import re
import sys
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework import op_def_registry
from tf_keras import layers

from tests.conftest import strategy_of, with_data
from tests.data.test_sources import array_config
from tests.data.test_tfrecord import record_config, write_records
from tests.photo_files import photo_config, write_photos
from tests.small_models import TINY_BOTTLENECK, TINY_MOBILENETV3, TINY_RS, TINY_VGG
from tests.step_runs import Run
from trainer.config import Config, ModelConfig, load, override
from trainer.data.pipeline import eval_dataset, eval_input, eval_steps, train_dataset
from trainer.data.source import open_source, open_split
from trainer.data.splits import tfds as tfds_split
from trainer.devices.strategy import checkpoint_device
from trainer.models.build import build_model
from trainer.preflight.program import train_step_program
from trainer.run.checkpoint import Checkpoints
from trainer.run.identity import run_metadata
from trainer.step.eval_step import make_eval_loop
from trainer.step.state import TrainState

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))

# --- finding host work ------------------------------------------------------------------------

# Operations that call Python, transfer to an accelerator's host, write or print. Operations with
# effects are also found by EFFECTS, so a name that is missing here is still found.
HOST = re.compile(
    r"PyFunc|Numpy|^_?(Xla)?(Host)?(Send|Recv)|HostCompute|Infeed|Outfeed|Print|Assert|Summary"
    r"|^(Write|Save)|Timestamp|CheckNumerics|DebugIdentity"
)
# The operations of a step that have effects according to TensorFlow's registry.
EFFECTS = {
    *("ReadVariableOp", "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"),
    *("ResourceApplyMomentum", "IteratorGetNext", "CrossReplicaSum"),
    *("While", "If", "StatefulPartitionedCall"),
}


def nodes(graph: GraphDef) -> Iterable:
    """Returns a graph's nodes, including those of all functions."""
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def host_work(graph: GraphDef, effects: set[str] | None = None) -> Counter:
    """Counts the operations that need the host, by kind.

    Args:
        effects: the only operations with effects that are allowed; None for any.
    """
    found = Counter()
    for node in nodes(graph):
        definition = op_def_registry.get(node.op)  # None: a function, called by its name
        has_effects = definition is not None and definition.is_stateful
        outside = "_xla_outside_compilation" in node.attr
        if HOST.search(node.op) or outside or (effects and has_effects and node.op not in effects):
            found[node.op] += 1
    return found


# --- the loops under TPUStrategy --------------------------------------------------------------


class Core(str):
    """A CPU device that TPUStrategy takes for a core, by the words it looks for in the name."""

    def __contains__(self, words):
        return words == "device:TPU:" or super().__contains__(words)


class Resolver(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Resolves two cores, which are two of the CPU devices of tests/conftest.py."""

    def get_tpu_system_metadata(self):
        names = (Core(f"/job:localhost/replica:0/task:0/device:CPU:{n}") for n in range(2))
        devices = tuple(types.SimpleNamespace(name=name) for name in names)
        return tf.tpu.experimental.TPUSystemMetadata(2, 1, 2, None, devices)


@functools.cache
def tpu_strategy() -> tf.distribute.Strategy:
    return tf.distribute.TPUStrategy(Resolver(tpu="local"))


def trace(config: Config, source) -> dict[str, GraphDef]:
    """Returns the train loop and the eval loop, each with all functions that it calls."""
    strategy = tpu_strategy()
    run = Run(config, source, strategy)
    loops = {"train": (run.loop, run.iterator)}
    batches = eval_input(config, strategy, source)
    for name, model in (("eval", run.state.model), ("eval of the average", run.state.ema_model)):
        if model is not None:
            loops[name] = make_eval_loop(config, strategy, model), iter(batches)
    # A new iterator is a new argument, but not a new trace: its elements have one shape.
    assert all(
        spec.shape.is_fully_defined() for spec in tf.nest.flatten(train_specs(config, source))
    )
    return {
        name: loop.get_concrete_function(iterator, tf.constant(1)).graph.as_graph_def()
        for name, (loop, iterator) in loops.items()
    }


def train_specs(config: Config, source):
    """Returns static shapes, which a TPU compiles for."""
    return train_dataset(config, source, 0, tf.distribute.InputContext()).element_spec


def synthetic(config: Config) -> Config:
    """Returns the config with small synthetic images, without settings that need encoded ones."""
    if config.model.num_classes is None:  # these data have no classes to count
        config = override(config, ["model.num_classes=10"])
    data = {"name": "synthetic", "crop": "none", "pad": 0, "image_size": 32}
    return with_data(config, **data, global_batch_size=16, eval_batch_size=16)


def assert_no_host_work(config: Config) -> None:
    source = open_source(config, "train", "")
    for name, graph in trace(config, source).items():
        kinds = Counter(node.op for node in nodes(graph))
        assert kinds["TPUReplicateMetadata"] == 1, name  # exactly one step
        assert kinds["While"] == 1 and kinds["IteratorGetNext"] == 2, name
        assert host_work(graph, EFFECTS) == {}, name
        # One tensor per step and replica leaves the cores; variables are written only on them.
        assert kinds["TPUReplicatedOutput"] == 1, name
        assert not [node for node in graph.node if node.op.startswith("Assign")], name


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipes_loops_leave_the_host_alone(path):
    assert_no_host_work(override(synthetic(load(str(path))), ["model.weights=none"]))


# All settings that add operations, a few at a time, on small nets with the recipes' layers.
OPTIONS = {
    "average, parts, clipping, own statistics": (
        *("model.name=tests.small_models.resnet8", "ema_decay=0.9", "accumulation_steps=2"),
        *("optimizer.clip_norm=1.0", "model.sync_batch_norm=false", "label_smoothing=0.1"),
    ),
    "dropout, depth, blur, mixing, AdamW, bfloat16": (
        *(
            "model.name=tests.small_models.tiny_rs",
            "model.dropout=0.2",
            "model.stochastic_depth=0.2",
        ),
        *("model.blur_pool=true", "augment.mixup=0.2", "augment.cutmix=1.0"),
        *("optimizer.name=adamw", "precision=mixed_bfloat16", "accumulation_steps=2"),
    ),
    "frozen, rates of stages": (
        *("model.name=tests.small_models.tiny_bottleneck", "model.freeze=stage1"),
        *("model.batch_norm_inference=true", "optimizer.stage_rates=0.1,0.1,0.5,1.0"),
    ),
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def with_options(config: Config, options: tuple[str, ...]) -> Config:
    return override(synthetic(config), ["optimizer.warmup_epochs=0", *options])


@each_option
def test_options_leave_the_host_alone(digits_config, options):
    assert_no_host_work(with_options(digits_config, options))


# TPUs have no float16, whose loss scale is part of the step, so this is under MirroredStrategy.
@pytest.mark.parametrize("replicas", [1, 2])
def test_float16_leaves_the_host_alone(digits_config, replicas):
    options = ("model.name=tests.small_models.convnet", "precision=mixed_float16", "xla=off")
    config = with_options(digits_config, options)
    run = Run(config, open_source(config, "train", ""), strategy_of(replicas))
    graph = run.loop.get_concrete_function(run.iterator, tf.constant(1)).graph.as_graph_def()
    effects = {*EFFECTS, "CollectiveReduceV2", "CollectiveReduceV3", "NoOp"}
    assert host_work(graph, effects) == {}


def test_a_tpu_checkpoint_is_the_same_as_any_other_strategy_s(digits_config, tmp_path):
    """Written and read as on a TPU: one copy is saved, and all copies are restored."""
    config = with_options(digits_config, ("model.name=tests.small_models.resnet8", "ema_decay=0.9"))
    source, split = open_split(config, "train", "")

    def checkpoints(strategy, seed: int) -> tuple[TrainState, Checkpoints]:
        with strategy.scope():
            state = TrainState(dataclasses.replace(config, seed=seed), source.channels)
        metadata = run_metadata(config, split, None)
        device = checkpoint_device(strategy)
        return state, Checkpoints(tmp_path, state, metadata, 3, True, device)

    state, saved = checkpoints(tpu_strategy(), 0)
    state.global_step.assign(7)  # outside of functions, as in train.py and divergence.py
    state.left_out.assign(tf.ones_like(state.left_out))
    saved.save(7)
    for strategy in (tpu_strategy(), strategy_of(2)):
        other, restored = checkpoints(strategy, 1)
        assert restored.restore() == 7
        for expected, found in zip(state.variables, other.variables, strict=True):
            for copy in strategy.experimental_local_results(found):
                np.testing.assert_array_equal(copy.numpy(), expected.numpy())


PLANTED = {
    "PrintV2": lambda x: tf.print(x[0, 0]),
    "EagerPyFunc": lambda x: tf.py_function(lambda a: a, [x], tf.float32),
    "PyFunc": lambda x: tf.numpy_function(lambda a: a, [x], tf.float32),
    "PyFuncStateless": lambda x: tf.numpy_function(lambda a: a, [x], tf.float32, stateful=False),
    "Assert": lambda x: tf.debugging.Assert(tf.reduce_all(x < 9.0), [x]),
    "WriteSummary": lambda x: tf.summary.scalar("x", x[0, 0], step=0),
    "CheckNumericsV2": lambda x: tf.raw_ops.CheckNumericsV2(tensor=x, message=""),
    "Timestamp": lambda x: tf.timestamp(),
    "OutfeedEnqueue": lambda x: tf.raw_ops.OutfeedEnqueue(input=x),
    "Abs": lambda x: tf.compat.v1.tpu.outside_compilation(tf.abs, x),
    "RandomUniform": lambda x: tf.random.uniform([2]),  # with a state on the host
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_host_work_is_found(digits_config, kind, monkeypatch, tmp_path):
    """Controls the tests above."""

    class Planted(layers.Layer):
        def call(self, x):
            PLANTED[kind](x)
            return x

    def build(config: ModelConfig):
        dense = layers.Dense(config.num_classes, name="head")
        return tf_keras.Sequential([layers.Flatten(), dense, Planted()])

    module = types.ModuleType("planted.model")
    module.build = build
    monkeypatch.setitem(sys.modules, "planted", types.ModuleType("planted"))
    monkeypatch.setitem(sys.modules, "planted.model", module)
    config = with_options(digits_config, ("model.name=planted.model",))
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        graphs = trace(config, open_source(config, "train", ""))
    for graph in graphs.values():
        assert host_work(graph, EFFECTS)[kind] >= 1
    assert host_work(graphs["train"])[kind] >= 1 or kind == "RandomUniform"  # by its name, too


# --- compilation by XLA -----------------------------------------------------------------------


@pytest.mark.usefixtures("xla")
@each_option
def test_a_step_with_options_has_a_form_that_xla_compiles(digits_config, options):
    """No shapes depend on values: preflight's own check."""
    assert train_step_program(with_options(digits_config, options), num_replicas=2)


class Compiling:
    """Stands in for a strategy of one replica: compiles what it runs, as TPUStrategy does."""

    num_replicas_in_sync = 1

    def run(self, step, args):
        return tf.function(step, jit_compile=True)(*args)

    def reduce(self, op, value, axis):
        del op, axis
        return value


@pytest.mark.usefixtures("xla")
@pytest.mark.parametrize(
    ("net", "precision"),
    [
        (TINY_BOTTLENECK, "float32"),
        (TINY_RS, "mixed_bfloat16"),
        pytest.param(TINY_MOBILENETV3, "float32", marks=pytest.mark.slow),
        pytest.param(TINY_VGG, "float32", marks=pytest.mark.slow),
    ],
)
def test_evaluation_is_the_same_when_xla_compiles_it(digits_config, net, precision):
    options = (f"model.name={net}", f"precision={precision}", "data.eval_batch_size=24")
    config = with_options(digits_config, options)
    source = open_source(config, "test", "")
    source._num_examples = 100  # so that the last batch is partial
    model = build_model(config, source.channels)
    batches = eval_dataset(config, source, tf.distribute.InputContext())
    num_steps = tf.constant(eval_steps(config, source, 1))
    plain, compiled = (
        [float(x) for x in make_eval_loop(config, strategy, model)(iter(batches), num_steps)]
        for strategy in (strategy_of(1), Compiling())
    )
    assert compiled[3] == plain[3] == 100
    tolerance = 1e-5 if precision == "float32" else 1e-2
    assert compiled[0] == pytest.approx(plain[0], rel=tolerance)
    if precision == "float32":
        assert compiled[1:] == plain[1:]


# --- the input --------------------------------------------------------------------------------


def input_graph(config: Config, source) -> GraphDef:
    """Returns the graph that a slice's host receives."""
    dataset = train_dataset(config, source, 0, tf.distribute.InputContext())
    graph = tf.raw_ops.DatasetToGraphV2(
        input_dataset=dataset._variant_tensor, external_state_policy=1
    )
    return GraphDef.FromString(graph.numpy())


AUGMENT = {
    "none": (),
    "randaugment": ("augment.policy=randaugment", "augment.erasing=0.5", "data.flip=true"),
    "trivialaugment": ("augment.policy=trivialaugment", "augment.color_jitter=0.4"),
    "mixing": ("augment.mixup=0.2", "augment.cutmix=1.0", "data.repeats=2"),
    "blocks": ("data.shuffle=blocks",),
}


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """Data of each kind."""
    root = write_photos(tmp_path_factory.mktemp("data"), photos, train=4)
    write_records(root, "train", 2, 8)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(root / "images.npz", x_train=images, y_train=np.arange(20) % 10)
    return root


@pytest.mark.parametrize(
    ("name", "augment"),
    [(n, "none") for n in ("tfrecord", "arrays", "synthetic", "digits")]
    + [("folder", a) for a in AUGMENT],
)
def test_an_input_in_the_graph_calls_no_python(digits_config, data_dir, folder, name, augment):
    configs = {
        "folder": photo_config(),
        "tfrecord": record_config(),
        "arrays": array_config(mean=(0.5,) * 3, std=(0.5,) * 3),
        "synthetic": synthetic(digits_config),
        "digits": digits_config,
    }
    config = override(configs[name], AUGMENT[augment])
    source = open_source(config, "train", data_dir if name == "digits" else str(folder))
    assert source.in_graph
    graph = input_graph(config, source)
    assert sum(1 for _ in nodes(graph)) > 50  # the functions are there
    assert host_work(graph) == {}


def test_an_input_that_calls_python_is_found(digits_config, data_dir, folder, monkeypatch):
    """Controls it: array_record is read from Python, and bad examples are reported from it."""
    monkeypatch.setattr(tfds_split, "_IN_MEMORY_BYTES", 0)
    config = with_data(digits_config, crop="none", pad=0)
    source = open_source(config, "train", data_dir)
    assert not source.in_graph
    assert host_work(input_graph(config, source)).keys() == {"PyFuncStateless"}

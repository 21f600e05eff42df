"""The program that preflight compiles: the train step of one replica, as HLO."""

import pytest
import tensorflow as tf
import tf_keras
from tensorflow.compiler.xla.service import hlo_pb2

from tests.conftest import strategy_of, with_data, with_model
from tests.preflight.common import canary
from tests.step_runs import Run
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.norm import BatchNorm
from trainer.models.stages import moving_statistics
from trainer.preflight import compiler, program
from trainer.preflight.compiler import Deadline, Refused
from trainer.step import build
from trainer.step import state as state_lib
from trainer.step.state import TrainState


@pytest.mark.usefixtures("xla")
def test_it_is_the_train_loops_own_step(small_config, digits, monkeypatch):
    """What the loop hands to its strategy, and what preflight traces: the objects that
    make_replica_step returned, with nothing around them."""
    made, traced, ran = [], [], []
    make, strategy = build.make_replica_step, strategy_of(1)
    run = strategy.run

    def recorded(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    def watched(*args, **kwargs):
        step = recorded(*args, **kwargs)
        return lambda *values: (traced.append(step), step(*values))[1]

    monkeypatch.setattr(strategy, "run", lambda fn, **kw: (ran.append(fn), run(fn, **kw))[1])
    monkeypatch.setattr(build, "make_replica_step", recorded)
    Run(small_config, digits, strategy).train(1)
    monkeypatch.setattr(build, "make_replica_step", watched)
    program.train_step_program(small_config, 2)
    loops, preflights = made
    assert {*map(id, ran)} == {id(loops)}
    assert {*map(id, traced)} == {id(preflights)}
    assert loops.__code__ is preflights.__code__


def all_reduced(module: hlo_pb2.HloModuleProto, num_replicas: int) -> list[int]:
    """The numbers that each all-reduce of a program sums over all replicas."""
    sizes = []
    for computation in module.computations:
        for instruction in computation.instructions:
            if instruction.opcode == "all-reduce":
                devices = instruction.collective_device_list
                (group,) = devices.replica_groups or instruction.replica_groups
                assert list(group.replica_ids) == list(range(num_replicas))
                size = 1
                for axis in instruction.shape.dimensions:
                    size *= axis
                sizes.append(size)
    return sizes


@pytest.mark.usefixtures("xla")
@pytest.mark.parametrize("sync_batch_norm", ["false", "true"])
def test_all_that_replicas_share_is_summed_once(small_config, sync_batch_norm):
    """Gradients, loss and accuracy; and the statistics once a step, or their moments once in each
    direction: by the model's variables."""
    settings = [f"model.sync_batch_norm={sync_batch_norm}", "accumulation_steps=1"]
    config = config_lib.override(small_config, settings)
    hlo = program.train_step_program(with_data(config, global_batch_size=48), 4)
    module = hlo_pb2.HloModuleProto.FromString(hlo)
    model = build_model(config, 1)
    expected = [v.shape.num_elements() for v in model.trainable_variables] + [1, 1]
    if config.model.sync_batch_norm:
        norms = [layer for layer in model._flatten_layers() if isinstance(layer, BatchNorm)]
        expected += [2 * norm.gamma.shape[0] for norm in norms for _ in ("forward", "backward")]
    else:
        expected += [v.shape.num_elements() for v in moving_statistics(model)]
    assert sorted(all_reduced(module, 4)) == sorted(expected)


@pytest.mark.usefixtures("xla")
def test_each_replica_gets_its_share_and_writes_its_variables_over_themselves(small_config):
    settings = ["data.global_batch_size=48", "data.train_sizes=16", "precision=mixed_bfloat16"]
    settings += ["data.train_size_epochs=1", "augment.mixup=0.2", "accumulation_steps=3"]
    config = config_lib.override(small_config, settings)
    module = hlo_pb2.HloModuleProto.FromString(program.train_step_program(config, 4))
    shapes = [list(shape.dimensions) for shape in module.host_program_shape.parameters]
    # The largest of its image sizes; labels that are mixed are a share of each class.
    assert shapes[:4] == [[], [], [12, 16, 16, 1], [12, 10]]
    with strategy_of(1).scope():
        state = TrainState(config, 1)
    written = [*state.model.variables, *state.ema_model.variables, *state.optimizer.variables]
    written += [state.applied_steps, state.global_step]
    over = {entry.parameter_number for entry in module.input_output_alias.entries}
    assert len(over) == len({id(v) for v in written})


@pytest.mark.usefixtures("xla")
def test_its_images_have_the_channels_of_the_data_set(small_config):
    """With one mean for all of them, which does not tell."""
    config = with_data(with_model(small_config, "linear"), name="folder", global_batch_size=4)
    module = hlo_pb2.HloModuleProto.FromString(program.train_step_program(config, 2))
    assert list(module.host_program_shape.parameters[2].dimensions) == [2, 8, 8, 3]


def planted(monkeypatch, function) -> Config:
    """A model whose layer `odd` does this to the logits."""

    class Odd(tf_keras.layers.Layer):
        def call(self, logits):
            return function(logits)

    class Model(tf_keras.Model):
        def __init__(self, config: Config):
            super().__init__(name="planted", dtype="float32")
            self.flatten = tf_keras.layers.Flatten(dtype="float32")
            self.head = tf_keras.layers.Dense(config.model.num_classes, dtype="float32")
            self.odd = Odd(name="odd", dtype="float32")

        def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
            del training
            return self.odd(self.head(self.flatten(images)))

    def build(config: Config, channels: int) -> tf_keras.Model:
        model = Model(config)
        size = config.data.image_size
        model(tf_keras.Input([size, size, channels]))
        return model

    monkeypatch.setattr(state_lib, "build_model", build)
    return config_lib.override(Config(), ["data.global_batch_size=8", "data.image_size=8"])


def through_python(logits):
    result = tf.py_function(lambda x: x, [logits], tf.float32)
    return tf.ensure_shape(result, logits.shape)


def resized(logits):
    size = tf.cast(tf.reduce_max(logits), tf.int32)
    return logits + tf.reduce_sum(tf.reshape(tf.tile(logits, [1, 2]), [size, -1]))


@pytest.mark.usefixtures("xla")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (through_python, "EagerPyFunc in layer planted/odd (planted/odd/EagerPyFunc): cannot be"),
        (
            lambda x: x + tf.strings.to_number(tf.strings.as_string(x)),
            "AsString in layer planted/odd (planted/odd/AsString): cannot be compiled by XLA",
        ),
        (
            lambda x: x + tf.reduce_sum(tf.boolean_mask(x, x > 0)),
            "Where in layer planted/odd/boolean_mask (planted/odd/boolean_mask/Where): has a shape",
        ),
        (resized, "layer planted/odd (planted/odd/Reshape): has a shape that depends on values"),
    ],
)
def test_what_a_tpu_cannot_run_is_named_with_its_layer(function, words, monkeypatch):
    with pytest.raises(UserError) as error:
        program.train_step_program(planted(monkeypatch, function), 2)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bug_of_a_model_keeps_its_traceback(monkeypatch):
    def broken(logits):
        return logits + tf.reshape(logits, [-1, 7])

    with pytest.raises(ValueError, match="odd"):
        program.train_step_program(planted(monkeypatch, broken), 2)


@canary
def test_canary_what_the_chip_cannot_do_is_named_with_its_layer(monkeypatch):
    """XLA has a Fourier transform of complex128, the TPU's compiler has none."""

    def transform(logits):
        spectrum = tf.signal.fft(tf.cast(logits, tf.complex128))
        return logits + tf.cast(tf.math.real(spectrum), tf.float32)

    hlo = program.train_step_program(planted(monkeypatch, transform), 1)
    found = compiler.compile_program(hlo, "v5e:1x1", Deadline(600))
    assert isinstance(found, Refused)
    place = program.layer_of_reason(hlo, found.reason, found.op_name)
    assert place.startswith("layer planted/odd (planted/odd/")

"""trainer.preflight: the program that it compiles, the compiler's answers, and the real compiler.

Nothing here, as nothing there, runs on a TPU.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
import tf_keras
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tensorflow.compiler.xla.service import hlo_pb2

from benchmarks.preflight import slice_of
from tests.conftest import strategy_of, with_data, with_model
from tests.step_runs import Run
from trainer import config as config_lib
from trainer.config import Config
from trainer.devices.checks import check_tpu
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.norm import BatchNorm
from trainer.models.stages import moving_statistics
from trainer.preflight import compiler, program, report
from trainer.preflight.compiler import (
    CompiledProgram,
    Deadline,
    OutOfMemory,
    Refused,
    TimeLimitError,
)
from trainer.preflight.search import Fit, find_fit
from trainer.preflight.slices import parse_slice
from trainer.step import build
from trainer.step import state as state_lib
from trainer.step.state import TrainState

ROOT = Path(__file__).parents[1]
NO_SYNC_BN = "model.sync_batch_norm=false"
needs_compiler = pytest.mark.skipif(
    not compiler.PYTHON.exists(), reason="needs the TPU's compiler: make preflight-env"
)


def canary(test):
    return needs_compiler(pytest.mark.usefixtures("xla")(test))


COMPILED = CompiledProgram(
    *(3 * 2**30, 1.97e12, 1e10, 2, 102_000_000, 0, 61.0, {"libtpu": "0.0.29"}, False)
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Slices.


@pytest.mark.parametrize(
    ("name", "replicas"),
    [("v5e:2x4", 8), ("v5e:1x1", 1), ("v6e:16x16", 256), ("v3:2x2", 8), ("v4:2x2x2", 16)],
)
def test_a_slice_has_a_replica_for_each_core(name, replicas):
    assert parse_slice(name).num_replicas == replicas


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5litepod-8", "--tpu=v5e:2x4"),
        ("v6e-32", "--tpu=v6e:4x8"),
        ("v5:2x2", "did you mean v5"),
        ("tpu", "one of v2, v3"),
        ("tpu7x:2x2x1", "TensorFlow does not run on TPU7x"),
        ("v5e", "layout of the chips on 2 axes, such as v5e:2x2"),
        ("v5e:2x2x1", "on 2 axes"),
        ("v4:2x2", "on 3 axes, such as v4:2x2x1"),
        ("v5e:0x2", "layout"),
        ("v5e:2x-2", "layout"),
        ("v5e:2x4\n", "layout"),
        ("v5e:32x32", "has 1,024 chips, and v5e at most 256"),
        ("v4-8", "counts cores"),
    ],
)
def test_a_wrong_slice_is_named_with_what_to_write(name, words):
    with pytest.raises(UserError) as error:
        parse_slice(name)
    assert f"--tpu={name}:" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_names_a_slice_that_its_batch_can_be_split_over(path):
    config = config_lib.load(str(path))
    assert config.data.global_batch_size % parse_slice(slice_of(path)).num_replicas == 0


# The program.


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


# The compiler's process, by stand-ins for it.


def stand_in(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "environment" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("installed", "words"),
    [(None, "is not installed"), ("jax==0.1\n", "differs from requirements-preflight.txt")],
)
def test_without_this_compiler_it_says_how_to_get_it(tmp_path, installed, words):
    python = stand_in(tmp_path, "exit 0")
    if installed:
        (python.parents[1] / "installed").write_text(installed)
    with pytest.raises(UserError, match=f"{words}: rm -rf .* && make preflight-env"):
        compiler.check_environment(python.parents[1])
    right = (ROOT / "requirements-preflight.txt").read_text()
    (python.parents[1] / "installed").write_text(right)
    compiler.check_environment(python.parents[1])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Check failed: bad' >&2; kill -ABRT $$", "signal 6): Check failed: bad"),
        ("echo 'No module named jax' >&2; exit 1", "exit code 1): No module named jax"),
        ("exit 0", "exit code 0): no output"),
        ("echo 'Segmentation fault'", "no result"),
        (
            """echo '{"status": "no_slice", "reason": "3x3"}'""",
            "--tpu=v5e:2x2: no such slice (3x3)",
        ),
    ],
)
def test_a_compiler_that_breaks_is_one_line(body, words, tmp_path):
    with pytest.raises(UserError) as error:
        compiler.compile_program(b"", "v5e:2x2", Deadline(60), stand_in(tmp_path, body))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_answers_is_read(tmp_path):
    values = {"status": "out_of_memory", "needed_bytes": 2**35}
    values |= {"compile_seconds": 3.5, "versions": {"libtpu": "0.0.29"}, "cached": False}
    python = stand_in(tmp_path, f"echo 'a warning'; echo '{json.dumps(values)}'")
    found = compiler.compile_program(b"", "v5e:2x2", Deadline(60), python)
    assert found == OutOfMemory(2**35, 3.5, {"libtpu": "0.0.29"}, False)


def test_at_the_time_limit_nothing_of_it_is_left(tmp_path):
    """Not its children either: one writes who it is, and both would go on for an hour."""
    child = tmp_path / "child"
    os.mkfifo(child)
    python = stand_in(tmp_path, f"sleep 3600 & echo $! > {child}; wait")
    reader = os.open(child, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TimeLimitError):
        compiler.compile_program(b"", "v5e:2x2", Deadline(2.0), python)
    pid = int(os.read(reader, 100))
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        process = os.pidfd_open(pid)
        ended, _, _ = select.select([process], [], [], 60)
        os.close(process)
        assert ended


# What fits instead.


def config_of(replica_batch: int, accumulation_steps: int = 1, mixup: float = 0.0) -> Config:
    settings = [f"data.global_batch_size={4 * replica_batch}", f"augment.mixup={mixup}"]
    return config_lib.override(Config(), [*settings, f"accumulation_steps={accumulation_steps}"])


def memory_of(config: Config) -> int:
    """A stand-in for what the compiler finds: images at a time, and a sum of gradients."""
    micro_batch = config.data.global_batch_size // 4 // config.accumulation_steps
    return 10 * micro_batch + (15 if config.accumulation_steps > 1 else 0)


@given(st.integers(1, 3000), st.integers(0, 30_000), st.sampled_from([0.0, 0.2]))
@example(3000, 2000, 0.0)  # a fifteenth fits: a second round
@example(128, 50, 0.0)  # five images
@example(1000, 5025, 0.0)  # 500 and their sums, which are no multiple of what is told apart
def test_the_largest_batch_and_the_fewest_parts_are_found(replica_batch, memory, mixup):
    replica_batch += replica_batch % 2
    config = config_of(replica_batch, mixup=mixup)
    tried = []

    def fits(config: Config) -> bool:
        return memory_of(config) <= memory

    def try_(config: Config):
        tried.append(config)
        return COMPILED if fits(config) else OutOfMemory(1, 1.0, {}, False)

    assume(not fits(config))
    found = find_fit(config, 4, try_)
    least = 2 if mixup else 1
    assert found.complete
    assert not fits(config_of(found.smallest_failed))
    assert found.largest or found.smallest_failed == least
    assert not found.largest or fits(config_of(found.largest))
    assert found.smallest_failed - found.largest <= max(8, replica_batch / 32)
    parts = [n for n in range(2, 65) if replica_batch % n == 0]
    fitting = [n for n in parts if fits(config_of(replica_batch, n))]
    # The fewest, where they are among the first that are not known to fail.
    if found.accumulation_steps is not None:
        assert found.accumulation_steps == fitting[0]
    elif found.largest:
        unknown = [n for n in parts if replica_batch // n < found.smallest_failed]
        assert not any(n in fitting for n in unknown[:4])
    for config in tried:  # each one that can be trained
        assert not (config.augment.mixes and config.data.global_batch_size // 4 % 2)


def test_when_the_time_is_over_what_is_known_is_told():
    results = [OutOfMemory(1, 1.0, {}, False), COMPILED, TimeLimitError()]

    def try_(_: Config):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    found = find_fit(config_of(128), 4, try_)
    assert found == Fit(32, 64, False, None, None)
    target = parse_slice("v5e:2x2")
    text = report.as_text(config_of(128), target, OutOfMemory(2**35, 9.0, {}, False), found)
    assert "needs at least 32.00 GiB of 15.75 GiB" in text
    assert "32 images at a time (64 do not): --set data.global_batch_size=128" in text
    assert "--time_limit_s" in text


# What is said.


@pytest.mark.parametrize("steps", [None, 2])
def test_a_pass_says_what_it_shows_and_what_not(steps):
    """By hand: 1.97e12 FLOPs at 197 TFLOP/s are 10 ms."""
    config, target = config_of(128), parse_slice("v5e:2x2")
    if steps is None:
        result, fit = COMPILED, None
    else:
        result = OutOfMemory(2**35, 9.0, {}, False)
        fit = Fit(64, 72, True, steps, COMPILED)
    text = report.as_text(config, target, result, fit)
    values = json.loads(report.as_json(config, target, result, fit))
    for words in ("at least 10 ms", "a lower bound, not an estimate", "3.00 GiB of 15.75 GiB"):
        assert words in text
    assert "Shown: XLA's program of this train step" in text
    assert "Not shown: that it runs. No TPU was used" in text
    assert "runs on" not in text
    assert values["fits"] is (steps is None)
    if steps is None:
        assert values["step_seconds_flop_lower_bound"] == pytest.approx(0.01)
        assert "that it runs" in values["not_shown"]
    else:
        assert values["fits_with_accumulation_steps"] == 2
        assert values["with_accumulation"]["peak_bytes"] == 3 * 2**30


# The command.


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trainer.preflight", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--tpu=: must name a slice, such as --tpu=v5e:2x4"),
        (["--tpu=v5litepod-8"], "--tpu=v5e:2x4"),
        (["--tpu=v5e:2x2", "--set", "model.nam=resnet18"], "did you mean 'model.name'"),
        (["--tpu=v5e:2x2", "--global_batch_size=0"], "global_batch_size"),
        (["--tpu=v5e:2x2", "--global_batch_size=96", "--set=accumulation_steps=5"], "(96)"),
        (
            ["--tpu=v5e:2x2", "--set=model.num_classes=none"],
            "model.num_classes is none, and there are no data: --set model.num_classes=NUMBER",
        ),
        (["--tpu=v5e:2x2", "--time_limit_s=nan"], "--time_limit_s=nan: must be a number"),
        (
            ["--tpu=v5e:2x2", "--config=configs/photos_resnet18.py"],
            "model.num_classes is none, and there are no data: --set model.num_classes=NUMBER",
        ),
        (["--tpu=v5e:2x2", "--time_limit_s=inf"], "--time_limit_s"),
    ],
)
def test_a_mistake_is_one_line_before_tensorflow_is_imported(arguments, words, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit(99)")
    done = run(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("precision=mixed_float16", "--set precision=mixed_bfloat16"),
        ("xla=off", "--set xla=auto"),
    ],
)
def test_what_no_tpu_computes_is_refused(setting, words):
    with pytest.raises(UserError, match=words):
        check_tpu(config_lib.override(Config(), [setting]))


@canary
def test_canary_the_command_compiles_a_small_net(tmp_path):
    """With the real compiler, as in CI: ResNet-20 on four chips, as JSON, and once more from the
    cache. FLOPs, by He et al. 2015: 40.6 million multiply-adds an image forward at 32 pixels; here
    at 12, of which the backward pass has twice as many."""
    arguments = ["--tpu=v5e:2x2", "--json", "--set", NO_SYNC_BN, "--global_batch_size=512"]
    done = run(*arguments, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = build_model(config_lib.load(str(ROOT / "configs" / "digits_resnet20.py")), 1)
    trained = sum(v.shape.num_elements() for v in model.trainable_variables)
    statistics = sum(v.shape.num_elements() for v in moving_statistics(model))
    assert found["fits"] and not found["cached"] and found["num_replicas"] == 4
    # Gradients, statistics, loss and accuracy. Of the two betas that are added where a shortcut is
    # projected, the gradients are equal, and the compiler sums them once.
    assert found["all_reduce_bytes"] == 4 * (trained + statistics + 2 - 32 - 64)
    assert found["all_reduces"] < 10  # packed
    forward = 2 * 40.6e6 * (12 / 32) ** 2 * 128
    assert found["flops"] == pytest.approx(3 * forward, rel=0.2)
    # Images and variables are the least; an activation of each layer and image is held.
    assert 4 * trained < found["peak_bytes"] < found["hbm_bytes"]
    again = json.loads(run(*arguments, XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert again == found | {"cached": True}


@canary
def test_canary_a_cache_that_cannot_be_used_costs_time_alone(small_config, tmp_path, monkeypatch):
    hlo = program.train_step_program(with_model(small_config, "linear"), 1)

    def compile_() -> bool:
        found = compiler.compile_program(hlo, "v5e:1x1", Deadline(600))
        assert isinstance(found, CompiledProgram)
        return found.cached

    assert [compile_(), compile_()] == [False, True]
    (entry,) = compiler.cache_folder().iterdir()
    for damage in ("", "{}", '{"status": "compiled"'):
        entry.write_text(damage)
        assert [compile_(), compile_()] == [False, True]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    assert [compile_(), compile_()] == [False, False]


@canary
@pytest.mark.slow
def test_canary_a_batch_that_is_too_large_is_told_and_split(small_config):
    """By the activations of the first convolution: float32 of 64 x 64 x 16, so 256 KiB an image and
    a few of them at a time; one of 128 Ki images takes more than there is for all."""
    config = with_data(with_model(small_config, "convnet"), image_size=64)
    target = parse_slice("v5e:1x1")

    def compile_(config: Config):
        hlo = program.train_step_program(config, 1)
        return compiler.compile_program(hlo, target.name, Deadline(900))

    huge = compile_(with_data(config, global_batch_size=2**17))
    assert isinstance(huge, OutOfMemory)
    assert huge.needed_bytes >= 2**17 * 2**18
    large = with_data(config, global_batch_size=49152)
    found = compile_(large)
    assert isinstance(found, OutOfMemory)
    assert target.core.hbm_bytes < found.needed_bytes < 4 * target.core.hbm_bytes
    fit = find_fit(large, 1, compile_)
    # In step with what it says that the whole needs.
    expected = 49152 * target.core.hbm_bytes / found.needed_bytes
    assert fit.complete
    assert fit.largest == pytest.approx(expected, rel=0.15)
    assert fit.smallest_failed == fit.largest + 1024
    assert fit.accumulation_steps == 2
    assert fit.compiled.peak_bytes < target.core.hbm_bytes


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


@canary
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["v2:2x2", "v3:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "v5e:4x8"]
)
def test_canary_the_compiler_knows_the_slices_and_their_cores(name, small_config):
    """A program for one replica more than there are is refused: it counts as we do."""
    config = with_data(with_model(small_config, "linear"), global_batch_size=1024)
    target = parse_slice(name)
    hlo = program.train_step_program(config, target.num_replicas)
    found = compiler.compile_program(hlo, name, Deadline(600))
    assert isinstance(found, CompiledProgram)
    hlo = program.train_step_program(config, 2 * target.num_replicas)
    refused = compiler.compile_program(hlo, name, Deadline(600))
    assert isinstance(refused, Refused)
    assert f"should contain {target.num_replicas} replicas" in refused.reason

"""The memory that a run needs, against free memory: what is free is given, the graphs are real."""

import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from tests.conftest import with_data
from tests.small_models import CONVNET
from trainer import config as config_lib
from trainer.config import Config
from trainer.devices.host_memory import FreeMemory
from trainer.errors import UserError
from trainer.insight import memory
from trainer.models.build import build_model
from trainer.run import memory_check
from trainer.step.build import Training, build_training
from trainer.step.train_step import CompiledPart

GIB = 2**30
BATCH = 4096


@pytest.fixture(scope="module")
def config() -> Config:
    return config_lib.override(
        Config(),
        [f"model.name={CONVNET}", "data.image_size=32", f"data.global_batch_size={BATCH}"],
    )


class Run:
    """A built training and its traced loop."""

    def __init__(self, config: Config):
        strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
        self.training: Training = build_training(config, strategy, 3, 100.0, 100)
        size, batch = config.data.image_size, config.data.global_batch_size
        images = tf.TensorSpec([batch, size, size, 3], tf.uint8)
        labels = tf.TensorSpec([batch], tf.int32)
        iterator = tf.data.IteratorSpec((images, labels))
        self.loop = self.training.train_loop.get_concrete_function(iterator, tf.constant(1)).graph

    def check(
        self, config: Config, devices: list[str], compiled: CompiledPart = "nothing"
    ) -> list[str]:
        """Returns what is said. The devices, none of which exist, stand in for a strategy's."""
        strategy: Any = SimpleNamespace(
            num_replicas_in_sync=len(devices), extended=SimpleNamespace(worker_devices=devices)
        )
        said: list[str] = []
        state = self.training.state
        memory_check.check_memory(config, strategy, compiled, state, 3, self.loop, said.append)
        return said


@pytest.fixture(scope="module")
def run(config) -> Run:
    return Run(config)


@pytest.fixture(scope="module")
def needed(config, run) -> memory.TrainingMemory:
    model = run.training.state.model
    return memory.training_memory(config, model, memory.training_graph(config, model, 3))


INPUT = 16 * 32 * 32 * 3  # bytes per image
CPUS = ["/job:localhost/replica:0/task:0/device:CPU:0"]
GPUS = [f"/job:localhost/replica:0/task:0/device:GPU:{i}" for i in range(2)]


@pytest.fixture
def host(monkeypatch):
    def set_free(number: float | None) -> None:
        free = None if number is None else FreeMemory(round(number), "this machine's memory")
        monkeypatch.setattr(memory_check, "free_host_memory", lambda: free)

    return set_free


@pytest.fixture
def no_estimate(monkeypatch):
    monkeypatch.setattr(memory, "training_graph", lambda *_: pytest.fail("traced once more"))


@pytest.mark.usefixtures("no_estimate")
def test_a_run_far_from_the_limit_pays_for_no_estimate(config, run, needed, host):
    """Nor does one on a system that does not say what is free."""
    for free in (8 * needed.at(BATCH), None):
        host(free)
        assert run.check(config, CPUS) == []


def test_a_warning_and_a_refusal_name_the_batch_that_fits(config, run, needed, host):
    needed = needed.plus(INPUT)
    need = needed.at(BATCH)
    host(need / 0.7)
    assert run.check(config, CPUS) == []
    host(need / 1.4)
    (warning,) = run.check(config, CPUS)
    text = rf"warning: 4096 images at a time \(.*\) need about {need / 2**20:.1f} MiB of this "
    assert re.match(text, warning)
    assert len(warning.splitlines()) == 1
    host(need / 3)
    with pytest.raises(UserError) as caught:
        run.check(config, CPUS)
    message = str(caught.value)
    assert re.match(r"4096 images .* of this machine's memory, of which \d+\.. MiB are ", message)
    found = re.search(r"data\.global_batch_size=(\d+) \(the largest that fits\)", message)
    assert found is not None
    assert needed.at(int(found[1])) < 0.8 * need / 3 < 1.3 * needed.at(int(found[1]))
    parts = re.search(r"accumulation_steps=(\d+)", message)
    assert parts is not None
    assert BATCH // int(parts[1]) <= int(found[1]) // 2 < 2 * BATCH // int(parts[1])

    # XLA may need less, and a run that trained with this batch shows that it fits.
    (warning,) = run.check(config, CPUS, compiled="step")
    assert "GiB (with XLA, which fuses operations, less) of" in warning.replace("MiB", "GiB")
    run.training.state.global_step.assign(1)
    assert run.check(config, CPUS) == [f"warning: {message}"]
    run.training.state.global_step.assign(0)


def test_replicas_on_one_host_share_its_memory(config, run, needed, host):
    halves, half = CPUS * 2, needed.plus(INPUT // 2).at(BATCH // 2)
    host(2 * half / 0.7)
    assert run.check(config, halves) == []
    host(half / 0.7)
    (warning,) = run.check(config, halves)
    assert "2048 images at a time (data.global_batch_size 4096 / 2 replica(s)" in warning


def test_a_gpu_has_the_step_and_the_host_the_input(config, run, needed, host, monkeypatch):
    """There is no GPU here: TensorFlow's answers are given."""
    need = needed.at(BATCH // 2)
    free = {"GPU:0": 10 * need, "GPU:1": round(need / 0.9), "GPU:2": 0}
    monkeypatch.setattr(
        memory_check.device_lib,
        "list_local_devices",
        lambda _: [SimpleNamespace(name=f"/device:{n}", memory_limit=free[n] + 5) for n in free],
    )
    used: Any = {"current": 5}
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda _: used)
    batch = BATCH * INPUT // 16
    host(8 * batch / 0.7)
    (warning,) = run.check(config, GPUS)
    assert "of the memory of GPU:1, of which" in warning
    host(8 * batch / 3)
    with pytest.raises(UserError, match=r"about 96\.0 MiB of this machine's .* which 32\.0 MiB"):
        run.check(config, GPUS)


def test_the_largest_image_size_counts(config, run, needed, host):
    """Though the loop is traced at the first of growing sizes."""
    host(needed.at(BATCH) / 0.3)
    growing = with_data(config, image_size=64, train_sizes=(32,), train_size_epochs=(1.0,))
    (warning,) = run.check(growing, CPUS)
    assert re.search(r"need about 3\.\d GiB", warning)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["accumulation_steps=4"],
        ["precision=mixed_bfloat16", "ema_decay=0.9", "optimizer.name=adamw"],
    ],
)
def test_the_bound_is_above_the_estimate(config, settings):
    config = config_lib.override(config, settings)
    run = Run(config)
    model = run.training.state.model
    estimate = memory.training_memory(config, model, memory.training_graph(config, model, 3))
    least = estimate.at(BATCH // config.accumulation_steps)
    assert least <= memory.upper_bound(config, model, run.loop) < 6 * least


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet20",
        pytest.param("digits_resnet20", marks=pytest.mark.slow),
        pytest.param("photos_resnet18", marks=pytest.mark.slow),
        pytest.param("photos_finetune_resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_for_one_device_is_silent_on_6_gib(name):
    config = config_lib.load(f"configs/{name}.py")
    config = config_lib.override(config, ["model.num_classes=10", "model.weights=none"])
    model = build_model(config, channels=3)
    estimate = memory.training_memory(config, model, memory.training_graph(config, model, 3))
    assert estimate.at(config.data.global_batch_size) < 0.8 * 6 * GIB


@pytest.mark.slow
def test_a_batch_for_no_machine_ends_the_command_before_it_takes_memory(tmp_path):
    """ResNet-20 would take 8 TiB. The kernel counts the most that the process ever held."""
    model = ("model.name=resnet20", "model.num_classes=10")
    data = ("data.name=synthetic", "data.image_size=224", "data.crop=none", "data.pad=0")
    settings = (*model, *data, "data.global_batch_size=100000")
    command = [sys.executable, "-m", "trainer.main", f"--workdir={tmp_path}"]
    command += [f"--set={text}" for text in settings]
    # A small process in between: what the one that starts it holds counts as its own.
    between = (
        "import os, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "_, status, usage = os.wait4(process.pid, 0)\n"
        "print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", between, *command], capture_output=True, text=True, check=True
    )
    code, kibibytes = map(int, done.stdout.split())
    assert code == 2
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: 100000 images at a time (data.global_batch_size 100000 / 1 ")
    assert kibibytes * 1024 < 3 * GIB

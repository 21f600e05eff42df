"""The estimate of a train step's memory: its rules, and the peak of a process that trains."""

import subprocess
import sys

import numpy as np
import pytest

from tests.insight.models import build
from tests.small_models import CONVNET, TINY_MOBILENETV3, TINY_VGG
from trainer import config as config_lib
from trainer.config import Config
from trainer.insight import memory
from trainer.models.build import build_model

# Prints the bytes that train steps add, beyond variables, to a process with a traced graph.
_MEASURE = """
import sys
import tensorflow as tf
from trainer import config as config_lib
from trainer.step.build import build_training

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

config = config_lib.override(config_lib.Config(), sys.argv[1:])
size, batch = config.data.image_size, config.data.global_batch_size
strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
loop = build_training(config, strategy, 3, 100.0, 100).train_loop
batches = tf.zeros([batch, size, size, 3], tf.uint8), tf.zeros([batch], tf.int32)
dataset = tf.data.Dataset.from_tensors(batches).repeat()
iterator = iter(strategy.experimental_distribute_dataset(dataset))
loop.get_concrete_function(iterator, tf.constant(1))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
for _ in range(3):
    loop(iterator, tf.constant(1))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("name", "batch", "parts"),
    [("resnet50", 16, 1), ("mobilenetv2_100", 32, 1), ("vgg11_bn", 8, 1), ("resnet18", 64, 2)],
)
def test_the_estimate_is_within_15_percent_of_a_measured_peak(name, batch, parts, precision):
    settings = [
        f"model.name={name}",
        "model.num_classes=1000",
        "data.image_size=224",
        f"data.global_batch_size={batch}",
        f"precision={precision}",
        f"accumulation_steps={parts}",
    ]
    command = [sys.executable, "-c", _MEASURE, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    config = config_lib.override(Config(), settings)
    model = build_model(config, channels=3)
    state = 4 * sum(int(np.prod(v.shape)) for v in (*model.variables, *model.trainable_variables))
    estimate = memory.training_memory(config, model, memory.training_graph(config, model, 3))
    measured = int(done.stdout) + state
    assert estimate.at(batch // parts) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("mixed_bfloat16", 2)])
def test_activations_are_the_inputs_of_the_gradient(precision, bytes_each):
    """Counts `convnet` by hand: the normalised image with 3 channels, and two ReLUs' outputs with
    16 and 32; the means and the logits are small."""
    config, model = build(CONVNET, 32, f"precision={precision}")
    kept = memory.kept_by_layer(memory.training_graph(config, model, 3))
    convolutions = kept["stage1_conv"] + kept["stage2_conv"]
    outputs = bytes_each * (32 * 32 * 16 + 16 * 16 * 32)
    images = bytes_each * 32 * 32 * 3
    assert outputs <= convolutions <= outputs + images
    assert sum(kept.values()) <= 1.1 * (outputs + 4 * 32 * 32 * 3 + images)


def estimate(*settings: str) -> tuple[memory.TrainingMemory, dict[str, int]]:
    config, model = build("resnet18", 32, *settings)
    graph = memory.training_graph(config, model, 3)
    return memory.training_memory(config, model, graph), memory.kept_by_layer(graph)


@pytest.mark.slow
def test_slots_averages_and_sums_take_the_memory_of_their_variables():
    settings = (
        "optimizer.name=sgd",
        "optimizer.name=adamw",
        "ema_decay=0.9",
        "accumulation_steps=2",
    )
    base, *others = (estimate(setting)[0].at(0) for setting in settings)
    _, model = build("resnet18", 32)
    trainable = 4 * sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    every = 4 * sum(int(np.prod(v.shape)) for v in model.variables)
    assert [other - base for other in others] == [trainable, every, trainable]


def test_frozen_stages_keep_no_activations_and_take_no_gradients():
    free, kept = estimate()
    frozen, kept_frozen = estimate("model.freeze=stage3")
    assert kept["stage1_block1"] > 0
    assert sum(kept_frozen[name] for name in kept if name.startswith(("stem", "stage1"))) == 0
    assert kept_frozen["stage4_block2"] == kept["stage4_block2"]
    assert frozen.at(256) < 0.6 * free.at(256)


def test_the_largest_batch_fits_at_every_point_of_the_step():
    estimate = memory.TrainingMemory(((100, 1), (10, 10)))
    assert [estimate.at(n) for n in (0, 10, 20)] == [100, 110, 210]
    for available in range(90, 400):
        batch = estimate.batch_that_fits(available)
        assert batch == 0 or estimate.at(batch) <= available < estimate.at(batch + 1)
    assert estimate.batch_that_fits(90) == 0


@pytest.mark.parametrize("name", ["resnet18", TINY_VGG, TINY_MOBILENETV3])
def test_an_image_takes_at_least_its_kept_activations(name):
    config, model = build(name, 32)
    graph = memory.training_graph(config, model, 3)
    found = memory.training_memory(config, model, graph)
    kept = sum(memory.kept_by_layer(graph).values())
    assert found.at(10_001) - found.at(10_000) >= kept

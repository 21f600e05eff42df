"""The estimate of a train step's memory against the peak of a process that does one."""

import subprocess
import sys

import numpy as np
import pytest

from trainer import config as config_lib
from trainer.config import Config
from trainer.insight import memory
from trainer.models.build import build_model

# Prints the bytes that train steps add to a process whose graph is traced, beyond its variables.
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
    ("name", "batch"), [("resnet50", 16), ("mobilenetv2_100", 32), ("vgg11_bn", 8)]
)
def test_the_estimate_is_within_15_percent_of_a_measured_peak(name, batch, precision):
    settings = [
        f"model.name={name}",
        "model.num_classes=1000",
        "data.image_size=224",
        f"data.global_batch_size={batch}",
        f"precision={precision}",
    ]
    command = [sys.executable, "-c", _MEASURE, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    config = config_lib.override(Config(), settings)
    model = build_model(config, channels=3)
    state = 4 * sum(int(np.prod(v.shape)) for v in (*model.variables, *model.trainable_variables))
    estimate = memory.training_memory(config, model, memory.training_graph(config, model, 3))
    measured = int(done.stdout) + state
    assert estimate.at(batch) == pytest.approx(measured, rel=0.15)

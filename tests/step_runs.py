"""Runs of the train step, in this process or in each worker of a group.

    python -m tests.step_runs CASES_JSON OUT_FOLDER DATA_DIR

runs cases under MultiWorkerMirroredStrategy and saves the result of `play` as `NAME-RANK.npz`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer import config as config_lib
from trainer.config import Config
from trainer.data.pipeline import batch_indices, train_input
from trainer.data.source import open_source
from trainer.devices.cluster import tf_config_cluster
from trainer.devices.compilation import choose_compilation
from trainer.step.build import build_training
from trainer.step.train_step import TrainMetrics


class Run:
    """A state, its train loop and its input."""

    def __init__(self, config: Config, source, strategy: tf.distribute.Strategy, compiled=None):
        self.config, self.source, self.strategy = config, source, strategy
        steps_per_epoch = len(source) / config.data.global_batch_size
        compiled = compiled or choose_compilation(config, strategy).compiled
        self.state, _, self.loop = build_training(
            config,
            strategy,
            source.channels,
            steps_per_epoch,
            round(steps_per_epoch * 30),
            compiled,
        )
        self.iterator = iter(train_input(config, strategy, source))

    def train(self, num_steps: int) -> TrainMetrics:
        metrics = self.loop(self.iterator, tf.constant(num_steps))
        return TrainMetrics(*(values.numpy() for values in metrics))

    def variables(self) -> dict[str, np.ndarray]:
        """Returns the whole state: weights, statistics, slots, averages, counters."""
        return {f"{index} {v.name}": v.numpy() for index, v in enumerate(self.state.variables)}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the distance in units of b's norm, or of 0.01 per entry if b is smaller, such as
    biases that start at zero after a few steps."""
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 0.01 * np.sqrt(np.size(b))))


def with_sync_batch_norm(config: Config, value: bool) -> Config:
    """Returns the config with `model.sync_batch_norm` set."""
    model = dataclasses.replace(config.model, sync_batch_norm=value)
    return dataclasses.replace(config, model=model)


def furthest(run: Run, reference: Run) -> float:
    """Returns the largest relative distance of any tensor of weights or batch norm statistics."""
    pairs = zip(run.state.model.variables, reference.state.model.variables, strict=True)
    return max(relative(a.numpy(), b.numpy()) for a, b in pairs)


class StopAfter:
    """Stands in for a signal: asks to stop after this many loops."""

    def __init__(self, loops: int):
        self._asked = 0
        self._loops = loops

    def __call__(self):
        return self

    @property
    def requested(self) -> bool:
        self._asked += 1
        return self._asked >= self._loops


class Poisoned:
    """A source with one all-white image, for models that fail on it."""

    in_graph = True

    def __init__(self, source, index: int):
        self.class_names, self.channels = source.class_names, source.channels
        self.image_shape, self._source, self._index = source.image_shape, source, index

    def __len__(self):
        return len(self._source)

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def fetch(self, indices):
        images, labels = self._source.fetch(indices)
        white = (indices == self._index)[:, None, None, None]
        return tf.where(white, np.uint8(255), images), labels


class Case(NamedTuple):
    """Settings on top of the default recipe, and the lengths of the loops to run."""

    settings: tuple[str, ...]
    lengths: tuple[int, ...]
    poison: tuple[int, int] | None = None  # a step and a row of its global batch


def play(case: Case, source, strategy: tf.distribute.Strategy) -> dict[str, np.ndarray]:
    """Runs a case; asserts that all replicas hold the same values.

    Returns:
        Every metric of every step, as `metrics NAME`; every variable, as `before INDEX NAME` and
        after each loop as `after LOOP INDEX NAME`.
    """
    config = config_lib.override(config_lib.load("configs/digits_resnet20.py"), case.settings)
    if case.poison is not None:
        step, row = case.poison
        source = Poisoned(source, int(batch_indices(config, source, step)[row]))
    run = Run(config, source, strategy)
    values: dict[str, Any] = {f"before {name}": v for name, v in run.variables().items()}
    metrics = []
    for loop, length in enumerate(case.lengths):
        metrics.append(run.train(length))
        values |= {f"after {loop} {name}": v for name, v in run.variables().items()}
        for variable in run.state.variables:
            first, *others = strategy.experimental_local_results(variable)
            for other in others:
                np.testing.assert_array_equal(first, other)
    assert run.loop.experimental_get_tracing_count() == 1
    for name in TrainMetrics._fields:
        values[f"metrics {name}"] = np.concatenate([getattr(m, name) for m in metrics])
    return values


def main() -> None:
    cases, folder, data_dir = sys.argv[1:]
    cluster = tf_config_cluster()
    assert cluster is not None
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    source = open_source(config_lib.load("configs/digits_resnet20.py"), "train", data_dir)
    for name, case in json.loads(cases).items():
        values = play(Case(*case), source, strategy)
        np.savez(Path(folder) / f"{name}-{cluster.rank}.npz", **values)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()

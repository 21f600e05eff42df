"""Measures our input alone, for benchmarks/input.py. `input_own NAME` prints Markdown."""

import collections
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.input import BATCH, IMAGE_SIZE, MEASURED, PHOTOS, write_files
from benchmarks.machine import markdown_table, say
from benchmarks.peers.protocol import resident_bytes
from trainer.config import Config, DataConfig, ModelConfig
from trainer.data.pipeline import train_dataset
from trainer.data.source import Source, open_source

ROUNDS = 5
LATENCY_S = 0.02
CHUNK = 32  # examples, some 5 MB
CHUNKS_KEPT = 64
TIMES = 256  # repetitions of the files: 1,024 chunks, of which 6 % are kept
BATCHES_IN_ALL, BATCH_OF_MEMORY = 10_000, 16


class SlowStorage:
    """A stand-in for a slow disk or a bucket, wrapped around a source.

    A read waits `latency_s` unless its chunk of CHUNK neighbours is among the last CHUNKS_KEPT.
    The wrapped source's examples are repeated TIMES times.
    """

    image_shape = None
    in_graph = False

    def __init__(self, source: Source, latency_s: float):
        self._source = source
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self._chunks: collections.OrderedDict[int, None] = collections.OrderedDict()
        self.class_names, self.channels = source.class_names, source.channels

    def __len__(self) -> int:
        return TIMES * len(self._source)

    def describe(self, index: int) -> str:
        return self._source.describe(index % len(self._source))

    def fetch(self, indices: tf.Tensor):
        def wait(index: np.ndarray) -> np.ndarray:
            chunk = int(index) // CHUNK
            with self._lock:
                known = chunk in self._chunks
            if not known and self._latency_s:
                time.sleep(self._latency_s)  # simulates a slow read
            with self._lock:
                self._chunks[chunk] = None
                self._chunks.move_to_end(chunk)
                if len(self._chunks) > CHUNKS_KEPT:
                    self._chunks.popitem(last=False)
            return index

        waited = tf.map_fn(
            # stateful=False, because stateful calls would wait for each other.
            lambda index: tf.ensure_shape(
                tf.numpy_function(wait, [index], tf.int64, stateful=False), []
            ),
            indices,
            parallel_iterations=64,
        )
        return self._source.fetch(tf.ensure_shape(waited, indices.shape) % len(self._source))


def config(batch: int, shuffle: str = "full", name: str = "folder") -> Config:
    crop = "random_resized" if name == "folder" else "none"
    return Config(
        model=ModelConfig(num_classes=2),
        data=DataConfig(
            name=name,
            image_size=IMAGE_SIZE,
            global_batch_size=batch,
            crop=crop,
            shuffle=shuffle,  # pyright: ignore[reportArgumentType]
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
    )


def latency() -> str:
    """Measures random and block order, with and without a wait for each read."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), PHOTOS["shipped"])
        rates: dict[tuple[str, float], list[float]] = {}
        for _ in range(ROUNDS):
            for shuffle in ("full", "blocks"):
                for seconds in (0.0, LATENCY_S):
                    rate = _rate(folder, shuffle, seconds)
                    rates.setdefault((shuffle, seconds), []).append(rate)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    rows = [
        [
            f"`{shuffle}`, {1e3 * seconds:.0f} ms",
            f"{medians[shuffle, seconds]:.0f}",
            f"{min(rates[shuffle, seconds]):.0f} to {max(rates[shuffle, seconds]):.0f}",
            f"{1 - medians[shuffle, seconds] / medians[shuffle, 0.0]:.0%}",
        ]
        for shuffle, seconds in rates
    ]
    return (
        f"A stand-in for slow storage: a read waits {1e3 * LATENCY_S:.0f} ms unless its chunk of "
        f"{CHUNK} neighbours is among the last {CHUNKS_KEPT} read. n = {ROUNDS}, in turns.\n\n"
        + markdown_table(["shuffle, wait", "images/s, median", "least to most", "lost"], rows)
    )


def _rate(folder: str, shuffle: str, latency_s: float) -> float:
    """Returns images/s of a new input pipeline: an existing one would have filled its buffers."""
    options = config(BATCH, shuffle)
    source = SlowStorage(open_source(options, "train", folder), latency_s)
    batches = iter(train_dataset(options, source, 0, tf.distribute.InputContext()))
    for _ in range(20):  # AUTOTUNE settles on its parallelism
        next(batches)
    started = time.monotonic()
    for _ in range(40):
        next(batches)
    return 40 * BATCH / (time.monotonic() - started)


def memory() -> str:
    """Measures the resident set over many batches."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), PHOTOS["small"])
        options = config(BATCH_OF_MEMORY)
        source = open_source(options, "train", folder)
        batches = iter(train_dataset(options, source, 0, tf.distribute.InputContext()))
        rows = []
        for count in range(BATCHES_IN_ALL + 1):
            if count in (100, 1000) or (count and count % 2500 == 0):
                rows.append([f"{count:,}", f"{resident_bytes() / 2**20:.0f}"])
                say(f"{count} batches")
            next(batches)
    head = [f"batches of {BATCH_OF_MEMORY}, 320x213", "resident set, MiB"]
    return markdown_table(head, rows)


def seek() -> str:
    """Measures the time to the first batch: making the data set, tracing, seeking, computing."""
    options = config(BATCH, name="synthetic")
    source = open_source(options, "train", "")
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for where, step in (("the start", 0), ("the middle", len(source) // BATCH // 2)):
            started = time.monotonic()
            next(iter(train_dataset(options, source, step, tf.distribute.InputContext())))
            seconds.setdefault(where, []).append(time.monotonic() - started)
    rows = [
        [where, f"{statistics.median(v):.2f}", f"{min(v):.2f} to {max(v):.2f}"]
        for where, v in seconds.items()
    ]
    return markdown_table([f"batch of {BATCH}, n = {ROUNDS}", "s, median", "least to most"], rows)


if __name__ == "__main__":
    text = {"latency": latency, "memory": memory, "seek": seek}[sys.argv[1]]()
    print(f"{MEASURED}\n{text}")

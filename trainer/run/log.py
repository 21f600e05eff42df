"""A run's log: metrics.jsonl, TensorBoard and the terminal. Every step appears once, despite kills.

A run that resumes at step S first drops what was written after S, by a killed process or before a
rollback: those steps are about to be trained and written again. Records of divergences stay.
"""

import json
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from trainer.files import replacing, write_atomically
from trainer.run.folder import RunFolder
from trainer.run.length import Length
from trainer.run.progress import Phase, Progress
from trainer.step.train_step import TrainMetrics

_SECONDS_BETWEEN_LINES = 10.0


class RunLog:
    """Writes a run's numbers to metrics.jsonl, TensorBoard and the terminal. Only the chief writes.

    A context manager: its files are closed on errors, too.

    Args:
        start_step: the step from which the run continues.

    Attributes:
        progress: what the terminal shows of the run.
    """

    def __init__(self, folder: RunFolder, start_step: int, length: Length):
        self._folder, self._length = folder, length
        self._enabled = folder.is_chief
        self._last_line = time.monotonic()
        self.progress = Progress(start_step, length.total_steps, is_shown=folder.is_chief)
        self._open_from(start_step)

    def __enter__(self) -> Self:
        self.progress.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.progress.__exit__(*error)
        self._close()

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`, to which the run has rolled back."""
        self._close()
        self._open_from(step)
        self.progress.step = step

    def _open_from(self, step: int) -> None:
        if not self._enabled:
            return
        _drop_records_after(self._folder.metrics, step)
        for name in ("train", "eval"):
            _drop_events_after(self._folder.path / name, step)
        self._metrics = open(self._folder.metrics, "a", encoding="utf-8")  # noqa: SIM115 (see _close)
        # TensorBoard's own writer: a scalar by tf.summary costs 0.3 ms, a step has several.
        self._train = EventFileWriter(str(self._folder.path / "train"))
        self._eval = EventFileWriter(str(self._folder.path / "eval"))

    def say(self, line: str | None) -> None:
        """Prints a line on the terminal, above the progress bar; nothing for None."""
        if self._enabled and line is not None:
            self.progress.say(line)

    def doing(self, phase: Phase) -> AbstractContextManager[None]:
        """Shows on the terminal what the run is doing, and for how long, until the block ends."""
        return self.progress.doing(phase)

    def train(
        self,
        step: int,
        metrics: TrainMetrics,
        seconds: float,
        images_per_second: float,
        traces: int,
        steps_per_second: float,
    ) -> None:
        """Writes the steps of one loop, the last of which is `step`.

        Args:
            seconds: how long the loop took.
            traces: how often the loop has been traced so far; more than once per image size is a
                waste to look into.
            steps_per_second: of all loops without tracing, for the time left; NaN before one.
        """
        self.progress.step = step  # every worker answers signals
        if not self._enabled:
            return
        columns = {name: np.asarray(values) for name, values in metrics._asdict().items()}
        del columns["bad_variable"]  # in the record of a divergence
        num_steps = len(columns["loss"])
        first = step - num_steps + 1
        rates = {
            "images_per_second": images_per_second,
            "steps_per_second": num_steps / seconds,
            "traces": traces,
        }
        for row in range(num_steps):
            values = {name: float(column[row]) for name, column in columns.items()}
            self._record("train", first + row, values | rates)
            _add_scalars(self._train, first + row, values)
        _add_scalars(self._train, step, rates)
        self._metrics.flush()
        loss, accuracy = columns["loss"][-1], columns["accuracy"][-1]
        numbers = f"loss {loss:.3f}", f"acc {accuracy:.3f}", f"{images_per_second:.0f} img/s"
        self.progress.show(numbers, self._seconds_left(step, steps_per_second))
        now = time.monotonic()
        if not self.progress.has_line and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.say(
                f"{self._where(step)}: loss {loss:.4f}, accuracy {accuracy:.4f}, "
                f"{images_per_second:.0f} images/s"
            )

    def _seconds_left(self, step: int, steps_per_second: float) -> float:
        """Estimates the time to the end of the run: steps at the measured pace, and evaluations
        that take as long as the last one. NaN before there is a pace.
        """
        steps = self._length.total_steps - step
        evaluations = math.ceil(steps / self._length.evaluation_interval)
        return steps / steps_per_second + evaluations * self.progress.took(Phase.EVALUATING)

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes a record that is not a curve, such as `divergence`, to metrics.jsonl."""
        if self._enabled:
            self._record(kind, step, values)
            self._metrics.flush()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Writes the metrics of the evaluation after `step`, such as `top1_accuracy`."""
        if not self._enabled:
            return
        self._record("eval", step, values)
        self._metrics.flush()
        _add_scalars(self._eval, step, {_tag(name): value for name, value in values.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"{self._where(step)}: evaluated: {shown}")

    def _where(self, step: int) -> str:
        total = self._length.total_steps
        return f"step {step}/{total} (epoch {step / self._length.steps_per_epoch:.1f})"

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        epoch = round(step / self._length.steps_per_epoch, 4)
        record = {"kind": kind, "step": step, "epoch": epoch}
        # JSON has no NaN; null stands for it.
        bad = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        record |= {k: None if k in bad else v for k, v in values.items()}
        self._metrics.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Writes everything to the files: called before a checkpoint counts its steps as done."""
        if self._enabled:
            self._metrics.flush()
            self._train.flush()
            self._eval.flush()

    def _close(self) -> None:
        if self._enabled:
            self._metrics.close()
            self._train.close()
            self._eval.close()


def _tag(name: str) -> str:
    """Returns a metric's name in TensorBoard, which draws the curves of one name in one chart.

    The accuracy of an evaluation is next to that of the training.
    """
    return name.replace("top1_accuracy", "accuracy")


def _add_scalars(writer: EventFileWriter, step: int, values: dict[str, float]) -> None:
    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))


def read_records(path: Path, kind: str) -> list[dict[str, Any]]:
    """Returns the records of one kind, such as `train` or `eval`; a torn last line is dropped."""
    if not path.exists():
        return []
    return [r for r in _parse(path.read_text(encoding="utf-8")) if r["kind"] == kind]


def _parse(text: str) -> list[dict[str, Any]]:
    records = []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # a kill during a write: nothing after it is whole
            break
    return records


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    records = _parse(path.read_text(encoding="utf-8"))
    kept = [r for r in records if r["step"] <= step or r["kind"] == "divergence"]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def _drop_events_after(folder: Path, step: int) -> None:
    """Rewrites TensorBoard's event files without the events after `step`.

    Otherwise TensorBoard would draw the dropped steps, and then the repeated ones as a second line.
    """
    for leftover in folder.glob(".events.out.tfevents.*.tmp"):  # left by a kill in the lines below
        leftover.unlink()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept = 0
        with replacing(path) as new, tf.io.TFRecordWriter(str(new)) as writer:
            try:
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    event = Event.FromString(record)
                    if event.step <= step:
                        writer.write(record)
                        kept += event.HasField("summary")
            except tf.errors.DataLossError:
                pass  # a kill during a write: nothing after it is whole
        if not kept:
            path.unlink()

"""Whole trainings: their logs, their end, and the command as a user types it."""

import dataclasses
import json
import math
import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import strategy_of, with_data, with_model, with_optimizer
from tests.run.test_progress import Clock
from tests.step_runs import StopAfter
from trainer import config as config_lib
from trainer.config import AugmentConfig, Config
from trainer.data import pipeline
from trainer.errors import DivergedError, PreemptedError, UserError
from trainer.failures import out_of_memory_reported, training_memory_advice
from trainer.models.weights.saved import read_checkpoint
from trainer.run import data as run_data
from trainer.run import evaluation, memory_check, train
from trainer.run.folder import RunFolder
from trainer.run.length import Length
from trainer.run.log import RunLog, read_records
from trainer.run.pace import Pace
from trainer.run.progress import Phase, Progress
from trainer.step.train_step import TrainMetrics


@pytest.fixture
def linear_config(digits_config):
    config = with_data(with_model(digits_config, "linear"), global_batch_size=96, image_size=8)
    return dataclasses.replace(config, num_epochs=3.0, eval_every_epochs=1.25)


def _train(config, folder, data_dir, num_replicas=1):
    run = RunFolder(str(folder), config)
    return train.train_and_evaluate(config, strategy_of(num_replicas), run, data_dir)


def _board(folder) -> EventAccumulator:
    """Opens TensorBoard's own reader, which keeps every point."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def test_the_logs_match_the_run(linear_config, data_dir, tmp_path, capsys):
    summary = _train(linear_config, tmp_path, data_dir)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [r for r in records if r["kind"] == "train"]
    evaluation = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in training] == list(range(1, 46))  # 3 x 1437 / 96 = 44.9
    assert [r["step"] for r in evaluation] == [19, 37, 45]  # 1.25 and 2.5 epochs, and the end
    assert training[-1]["epoch"] == pytest.approx(45 * 96 / 1437, abs=1e-4)
    assert training[-1]["loss"] < 0.7 * training[0]["loss"]
    assert summary.last_accuracy == evaluation[-1]["top1_accuracy"]
    assert summary.best_accuracy == pytest.approx(max(r["top1_accuracy"] for r in evaluation))
    assert 0.8 < summary.best_accuracy < evaluation[-1]["top5_accuracy"] <= 1

    # TensorBoard's own reader finds the same numbers, each step once.
    board = {name: _board(tmp_path / name) for name in ("train", "eval")}
    # A chart has the curves of one tag: accuracy comes first, of training and evaluation.
    first = [min(board[name].Tags()["scalars"]) for name in ("train", "eval")]
    assert first == ["accuracy", "accuracy"]
    for name, kind, tags in (
        ("train", training, ("loss", "accuracy", "learning_rate", "gradient_norm")),
        ("eval", evaluation, ("loss", "accuracy", "top5_accuracy")),
    ):
        for tag in tags:
            key = "top1_accuracy" if (name, tag) == ("eval", "accuracy") else tag
            points = [(e.step, e.value) for e in board[name].Scalars(tag)]
            assert [step for step, _ in points] == [r["step"] for r in kind]
            np.testing.assert_allclose([v for _, v in points], [r[key] for r in kind], rtol=1e-6)
    for tag in ("images_per_second", "steps_per_second", "traces"):
        assert len(board["train"].Scalars(tag)) >= 3
    assert {r["traces"] for r in training} == {1}
    (startup,) = (r for r in records if r["kind"] == "startup")
    assert startup["step"] == 0
    assert {"data", "build", "trace", "first loop, with compiling"} <= startup.keys()

    lines = capsys.readouterr().out
    assert "linear (650 parameters, float32) on digits (1,437 to train, 360 to evaluate)" in lines
    assert "XLA off (auto)" in lines
    assert lines.count("evaluated: top1_accuracy") == 3
    assert "step 45/45 (epoch 3.0): evaluated" in lines


def test_loop_lengths_do_not_change_the_result(linear_config, data_dir, tmp_path):
    config = dataclasses.replace(linear_config, num_epochs=1.0)
    losses = []
    for length in (1, 4, "auto"):
        folder = tmp_path / str(length)
        _train(dataclasses.replace(config, steps_per_loop=length), folder, data_dir)
        losses.append([r["loss"] for r in read_records(folder / "metrics.jsonl", "train")])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-6)


@pytest.mark.slow
def test_image_sizes_grow_as_configured_even_after_a_stop(digits_config, data_dir, tmp_path):
    """96 of 1,437: an epoch is 14.97 steps."""
    config = with_data(
        with_model(digits_config, "convnet"),
        global_batch_size=96,
        image_size=8,
        train_sizes=(4, 6),
        train_size_epochs=(0.5, 1.5),
    )
    config = dataclasses.replace(config, num_epochs=2.0, eval_every_epochs=0.7)
    seen = []

    def run(folder, **changes):
        original = pipeline.train_dataset

        def watched(config, source, step, *others):
            seen.append((step, config.data.image_size))
            return original(config, source, step, *others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "train_dataset", watched)
            return _train(dataclasses.replace(config, **changes), folder, data_dir)

    run(tmp_path / "whole")
    assert seen == [(0, 4), (7, 6), (22, 8)]
    records = read_records(tmp_path / "whole" / "metrics.jsonl", "train")
    traces = [record["traces"] for record in records]
    assert [traces[step - 1] for step in (7, 8, 22, 23, 30)] == [1, 2, 2, 3, 3]

    # A run that is stopped during the second size, and resumes.
    seen.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "StopRequest", StopAfter(4))  # 3, 3, 1 (a new size), 3 steps
        with pytest.raises(PreemptedError):
            run(tmp_path / "stopped", steps_per_loop=3)
    run(tmp_path / "stopped")
    assert seen == [(0, 4), (7, 6), (10, 6), (22, 8)]
    again = read_records(tmp_path / "stopped" / "metrics.jsonl", "train")
    np.testing.assert_allclose([r["loss"] for r in again], [r["loss"] for r in records], rtol=1e-3)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_training_on_mixtures(digits_config, data_dir, tmp_path, num_replicas):
    """Accuracy counts the class with the largest share of an image; the loss cannot fall to 0."""
    config = with_data(with_model(digits_config, "linear"), global_batch_size=96, image_size=8)
    augment = AugmentConfig(mixup=0.2, cutmix=1.0, erasing=0.1)
    config = dataclasses.replace(config, num_epochs=6.0, augment=augment)
    summary = _train(config, tmp_path, data_dir, num_replicas)
    records = read_records(tmp_path / "metrics.jsonl", "train")
    assert records[-1]["loss"] < records[0]["loss"]
    assert summary.last_accuracy > 0.5


def test_mixing_needs_pairs(digits_config, data_dir, tmp_path):
    config = with_data(with_model(digits_config, "linear"), global_batch_size=6)
    config = dataclasses.replace(config, augment=AugmentConfig(mixup=0.2))
    with pytest.raises(
        UserError,
        match=r"an even number of images for each .* nearest is --set data.global_batch_size=8",
    ):
        _train(config, tmp_path, data_dir, num_replicas=2)


def test_without_evaluation_the_best_checkpoint_is_the_last(
    linear_config, data_dir, tmp_path, capsys
):
    config = config_lib.override(linear_config, ["data.eval_split=none"])
    summary = _train(config, tmp_path, data_dir)
    assert "no evaluation: data.eval_split is none" in capsys.readouterr().out
    assert summary.text(tmp_path).startswith("not evaluated; trained ")
    assert read_records(tmp_path / "metrics.jsonl", "eval") == []
    saved = read_checkpoint(tmp_path)
    assert saved.origin == f"the weights of {tmp_path / 'checkpoints' / 'ckpt-45'}"
    assert json.loads((tmp_path / "config.json").read_text())["data"]["eval"] is None


def test_other_data_are_refused(digits_config, data_dir, tmp_path, monkeypatch):
    """With another number of examples, the rest of the run would change."""
    config = with_data(with_model(digits_config, "linear"), global_batch_size=96, image_size=8)
    _train(config, tmp_path / "run", data_dir)
    original = run_data.open_split

    def open_less(config, split, folder, found):
        return original(config, "train[:90%]" if split == "train" else split, folder, found)

    monkeypatch.setattr(run_data, "open_split", open_less)
    with pytest.raises(
        UserError, match=r"another run: 1,437 images in 10 classes .* 1,293 in 10 at .*digits"
    ):
        _train(dataclasses.replace(config, keep_checkpoints=5), tmp_path / "run", data_dir)


def test_a_divergence_is_named_and_the_checkpoint_kept(linear_config, data_dir, tmp_path):
    config = dataclasses.replace(linear_config, checkpoint_every_s=0.0, steps_per_loop=2)
    exploding = with_optimizer(config, learning_rate=1e38, warmup_epochs=0.0, schedule="constant")
    with pytest.raises(
        DivergedError, match=r"step \d+: the loss is .* at learning rate 1e\+38 and"
    ):
        _train(exploding, tmp_path, data_dir)
    bad = [r["step"] for r in read_records(tmp_path / "metrics.jsonl", "train") if not r["applied"]]
    saved = [int(p.stem.split("-")[1]) for p in tmp_path.glob("checkpoints/ckpt-*.index")]
    assert all(step < min(bad) for step in saved)
    assert not (tmp_path / "DONE").exists()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_batch_that_cannot_fit_is_refused_before_the_first_step(
    linear_config, data_dir, tmp_path
):
    with pytest.raises(UserError, match=r"^96 images at a time .* \(not one image fits\)"):
        _train(with_model(linear_config, "hungry"), tmp_path, data_dir)
    assert read_records(tmp_path / "metrics.jsonl", "train") == []


def test_a_lack_of_memory_suggests_what_to_try(linear_config, data_dir, tmp_path, monkeypatch):
    """On a system that does not say what is free, TensorFlow's own allocator refuses, in the first
    loop, after it has tried for ten seconds."""
    monkeypatch.setattr(memory_check, "free_host_memory", lambda: None)
    with pytest.raises(UserError) as caught:
        _train(with_model(linear_config, "hungry"), tmp_path, data_dir)
    message = str(caught.value)
    assert message.startswith(
        "out of memory with 96 images at a time (data.global_batch_size 96 / 1 replica(s) / "
        "accumulation_steps 1): try, with --set and a new --workdir, accumulation_steps=2 (the "
    )
    assert len(message.splitlines()) == 1
    assert read_records(tmp_path / "metrics.jsonl", "train") == []


def test_the_reason_is_not_a_line_of_the_traceback():
    """TensorFlow's message as of 2.21, from a checkout in a folder called memory."""
    text = (
        "Graph execution error:\n\nDetected at node Tile defined at (most recent call last):\n"
        '  File "/home/me/memory/trainer/main.py", line 127, in <module>\n\n'
        "OOM when allocating tensor with shape[256,1048576,1048576] and type float on /CPU:0\n"
    )
    with (
        pytest.raises(UserError, match=r"^out of memory with all: none \(OOM when .* /CPU:0\)$"),
        out_of_memory_reported("all", "none"),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, text)


def test_the_advice_counts_replicas_and_parts(linear_config):
    """The next number of parts divides a replica's 48 images."""
    config = dataclasses.replace(linear_config, accumulation_steps=4, precision="mixed_bfloat16")
    cause, advice = training_memory_advice(config, num_replicas=2)
    assert cause == (
        "12 images at a time (data.global_batch_size 96 / 2 replica(s) / accumulation_steps 4)"
    )
    assert "accumulation_steps=6 (" in advice
    assert "precision" not in advice  # it is half already


def test_an_evaluation_that_miscounts_is_a_bug(linear_config, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "eval_steps", lambda *args: 1)  # 256 of the 360
    with pytest.raises(AssertionError, match=r"evaluated 256.0 examples of 360"):
        _train(linear_config, tmp_path, data_dir)


def test_a_batch_that_does_not_divide_is_refused(linear_config, data_dir, tmp_path):
    config = with_data(linear_config, global_batch_size=97)
    with pytest.raises(
        UserError, match=r"\(97\) must be divisible by the number of replicas \(4\)"
    ):
        _train(config, tmp_path, data_dir, num_replicas=4)


def test_a_batch_larger_than_an_epoch_is_refused(linear_config, data_dir, tmp_path):
    config = with_data(linear_config, global_batch_size=1440)
    with pytest.raises(
        UserError, match=r"\(1,440\) is more than an epoch has: 1,437 .*global_batch_size=1436$"
    ):
        _train(config, tmp_path, data_dir, num_replicas=4)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("interval", "total", "expected"),
    [
        (10.0, 35, [10, 20, 30, 35]),
        (22.45, 60, [22, 45, 60]),
        (0.3, 4, [1, 2, 3, 4]),  # never two after the same step, never none
        (1000.0, 7, [7]),
    ],
)
def test_evaluations_come_at_the_ends_of_intervals(interval, total, expected):
    config = dataclasses.replace(Config(), eval_every_epochs=interval / 10.0)
    length = Length(config, steps_per_epoch=10.0, total_steps=total)
    steps = [0]
    while steps[-1] < total:
        steps.append(length.next_evaluation(steps[-1]))
    assert steps[1:] == expected


def test_auto_loops_aim_at_two_seconds():
    pace = Pace("auto")

    def next_length(num_steps: int, seconds: float) -> int:
        pace.adapt(num_steps, seconds)
        return pace.loop_steps

    assert next_length(1, seconds=30.0) == 1  # tracing
    assert next_length(1, seconds=0.01) == 4  # at most four times the last
    assert next_length(4, seconds=0.01) == 16
    assert next_length(16, seconds=0.25) == 64
    assert next_length(64, seconds=1.0) == 128
    assert next_length(128, seconds=8.0) == 32
    assert next_length(3, seconds=0.1) == 60  # cut short by an evaluation
    fixed = Pace(7)
    fixed.adapt(7, seconds=0.01)
    assert fixed.loop_steps == 7


def _metrics(num_steps: int, value: float) -> TrainMetrics:
    return TrainMetrics(*(np.full(num_steps, value, np.float32) for _ in TrainMetrics._fields))


def test_records_after_the_checkpoint_are_dropped(linear_config, tmp_path):
    folder = RunFolder(str(tmp_path), linear_config)
    length = Length(linear_config, steps_per_epoch=10.0, total_steps=100)
    with RunLog(folder, 0, length) as log:
        log.train(10, _metrics(10, 1.0), 1.0, 1.0, 1, math.nan)
        log.evaluation(10, {"top1_accuracy": 0.5})
        log.train(20, _metrics(10, math.nan), 1.0, 1.0, 1, 10.0)
        log.evaluation(20, {"top1_accuracy": 0.6})
    with open(folder.metrics, "a") as torn:
        torn.write('{"kind": "train", "st')
    with RunLog(folder, 15, length) as log:  # a checkpoint between the two evaluations
        log.train(20, _metrics(5, 3.0), 1.0, 1.0, 1, 10.0)
        log.evaluation(20, {"top1_accuracy": 0.7})
    records = read_records(folder.metrics, "train")
    assert [r["step"] for r in records] == list(range(1, 21))
    assert [r["loss"] for r in records] == [1.0] * 10 + [None] * 5 + [3.0] * 5
    evaluations = read_records(folder.metrics, "eval")
    assert [(r["step"], r["top1_accuracy"]) for r in evaluations] == [(10, 0.5), (20, 0.7)]
    # Files of one process and one second are read in the order of their names, such as 9 after 11.
    points = sorted(_board(tmp_path / "eval").Scalars("accuracy"), key=lambda event: event.step)
    assert [e.step for e in points] == [10, 20]
    np.testing.assert_allclose([e.value for e in points], [0.5, 0.7])


def test_the_time_left_is_that_of_steps_and_evaluations(linear_config, tmp_path):
    clock = Clock()
    length = Length(linear_config, steps_per_epoch=10.0, total_steps=100)
    with RunLog(RunFolder(str(tmp_path), linear_config), 0, length) as log:
        log.progress = Progress(0, 100, is_shown=False, clock=clock)

        def time_left(step: int, steps_per_second: float) -> str:
            log.train(step, _metrics(5, 1.0), 1.0, 1.0, 1, steps_per_second)
            found = re.search(r"<(.+)\]", log.progress.line(80))
            assert found
            return found[1]

        assert time_left(5, math.nan) == "?"  # that loop has been traced
        assert time_left(20, 2.0) == "00:40"
        with log.doing(Phase.EVALUATING):
            clock.now += 3.0
        assert time_left(25, 2.0) == "00:55"  # 75 steps, and 6 evaluations, one each 12.5 steps
        assert time_left(100, 2.0) == "00:00"


def test_the_command_trains_on_two_replicas_and_reports_it(data_dir, tmp_path):
    """Runs it as a user would; the second time, the run is already done."""
    command = [
        *(sys.executable, "-m", "trainer.main", "--strategy=mirrored", "--virtual_devices=2"),
        *("--set", "num_epochs=2", f"--workdir={tmp_path}", f"--data_dir={data_dir}"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, umask=0o027
    )
    assert (done.returncode, done.stderr) == (0, "")  # without a terminal, no bar
    assert not re.search(r"[\r\x1b]", done.stdout)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o640}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o750}
    assert "MirroredStrategy with 2 replica(s), global batch 64" in done.stdout
    assert re.search(
        r"best accuracy 0\.\d{4}, last 0\.\d{4}; trained [\d.]+ s at \d+ images/s", done.stdout
    )
    assert done.stdout.splitlines()[-1] == f"tensorboard --logdir {tmp_path}"
    assert (tmp_path / "DONE").read_text() == "".join(done.stdout.splitlines(True)[-3:])
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0
    assert again.stdout.startswith(f"already done: {tmp_path}")
    other = subprocess.run(
        [*command, "--set=seed=1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert other.returncode == 2
    assert other.stderr.startswith(f"error: --workdir={tmp_path}: holds a run that computes")
    assert "seed is 1, was 0" in other.stderr


def test_a_training_outlives_the_reader_of_its_output(data_dir, tmp_path):
    """As in `| head`: it trains to its end, with its log and checkpoint complete."""
    reader, writer = os.pipe()
    os.close(reader)
    settings = ("model.name=tests.small_models.linear", "num_epochs=1", "optimizer.warmup_epochs=0")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trainer.main", f"--workdir={tmp_path}"),
            *(f"--data_dir={data_dir}", *(f"--set={setting}" for setting in settings)),
        ],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    steps = [record["step"] for record in read_records(tmp_path / "metrics.jsonl", "train")]
    assert steps == list(range(1, 23))  # 1437 / 64 = 22.45
    assert (tmp_path / "checkpoints" / "ckpt-22.index").exists()
    assert (tmp_path / "DONE").exists()

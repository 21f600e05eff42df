"""Several workers, real processes on loopback: one computation, one stop, one writer."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.workers import finish, start_workers
from trainer.run.log import read_records

_FLAGS = (
    "--set=model.name=tests.small_models.resnet8",
    "--set=data.global_batch_size=66",  # divisible by two and three
    "--set=num_epochs=4",
    "--set=eval_every_epochs=1",
    "--set=steps_per_loop=5",
    "--set=data.eval_batch_size=100",  # 360 = 3.6 batches: a partial last one
)


def _command(workdir: Path, data_dir: str, strategy: str, *flags: str) -> list[str]:
    trainer = [sys.executable, "-m", "tests.trainer_dying", "never", "0", f"--strategy={strategy}"]
    return [*trainer, *_FLAGS, *flags, f"--workdir={workdir}", f"--data_dir={data_dir}"]


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The result of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    subprocess.run(_command(workdir, data_dir, "one_device"), check=True, capture_output=True)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_workers_train_as_one_process_and_stop_together(alone, data_dir, tmp_path, number):
    together = tmp_path / "together"
    commands = [_command(together, data_dir, "multi_worker")] * number
    processes = start_workers(commands)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if "evaluated" in line:
            break
    processes[-1].terminate()  # one that does not write
    finish(processes, 42)
    names = sorted(path.name for path in together.rglob("*") if path.is_file())
    assert len([name for name in names if name.startswith("events")]) == 2  # one writer
    outputs = finish(start_workers(commands), 0)
    assert "best accuracy" in outputs[0]
    assert all("accuracy" not in output for output in outputs[1:])

    for kind, keys in (("train", ("loss",)), ("eval", ("top1_accuracy", "loss"))):
        expected, actual = (
            read_records(path / "metrics.jsonl", kind) for path in (alone, together)
        )
        assert [r["step"] for r in actual] == [r["step"] for r in expected]
        for key in keys:
            values, others = ([r[key] for r in records] for records in (actual, expected))
            # Only to the first evaluation: later, training magnifies rounding (test_train_step.py).
            tolerance = {"rtol": 1e-4} if kind == "train" else {"atol": 0.01}
            first = 20 if kind == "train" else 1
            np.testing.assert_allclose(values[:first], others[:first], **tolerance)
    assert sorted(path.name for path in together.iterdir()) == [
        *(".lock", "DONE", "checkpoints", "config.json", "eval"),
        *("history.jsonl", "metrics.jsonl", "train"),
    ]


@pytest.mark.slow
def test_workers_that_would_compute_different_things_are_refused(data_dir, tmp_path):
    """Another config is refused before TensorFlow starts; another folder and step, after."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    commands = [_command(shared, data_dir, "multi_worker", f"--set=seed={i}") for i in range(2)]
    for output in finish(start_workers(commands), 2):
        assert "was started with something else: seed is 1, worker 0 has 0" in output

    short = "--set=num_epochs=2"
    finish(start_workers([_command(shared, data_dir, "multi_worker", short)] * 2), 0)
    (shared / "DONE").unlink()
    commands = [_command(path, data_dir, "multi_worker", short) for path in (shared, own)]
    for output in finish(start_workers(commands), 2):
        assert "error: worker 1 starts from something other than the others: step 0, not " in output
        assert "--workdir must be on storage that all workers see" in output


@pytest.mark.slow
def test_the_worker_with_other_data_is_named(tmp_path):
    """A stale copy on one node, with as many images: before TensorFlow starts."""
    commands = []
    for worker in range(3):
        folder = tmp_path / str(worker)
        folder.mkdir()
        images, labels = np.zeros((66, 8, 8), np.uint8), np.arange(66) % 2
        images[:, 0, 0] = worker == 2
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        np.savez(folder / "images.npz", **arrays)
        flags = ("--set=data.name=arrays", "--set=data.path=images.npz")
        flags += ("--set=model.num_classes=none",)
        commands.append(_command(tmp_path / "run", str(folder), "multi_worker", *flags))
    for output in finish(start_workers(commands), 2):
        assert "error: worker 2 (localhost:" in output
        assert "the data of split train is '66 examples of 2 classes, fingerprint " in output
        assert "start all workers with the same command, on the same data" in output


@pytest.mark.slow
def test_workers_roll_back_together(data_dir, tmp_path):
    """float32 at a learning rate that no step survives: gives up after two rollbacks."""
    flags = ("--set=optimizer.learning_rate=1e30", "--set=optimizer.warmup_epochs=0")
    flags += ("--set=on_divergence=rollback", "--set=max_rollbacks=2", "--set=checkpoint_every_s=0")
    command = _command(tmp_path, data_dir, "multi_worker", *flags)
    for output in finish(start_workers([command] * 2), 43):
        assert "rolled back 2 times already (max_rollbacks)" in output
    steps = [r["step"] for r in read_records(tmp_path / "metrics.jsonl", "divergence")]
    assert len(steps) == 3

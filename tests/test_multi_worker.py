"""Two workers, real processes on loopback: the losses of one, a signal to one, the files of one."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.summaries import read_records

_FLAGS = (
    "--set=model.name=resnet8",
    "--set=num_epochs=4",
    "--set=eval_every_epochs=1",
    "--set=steps_per_loop=5",
    "--set=data.eval_batch_size=100",  # 360 = 3.6 batches: a partial last one
)


def _command(workdir: Path, data_dir: str, strategy: str) -> list[str]:
    trainer = [sys.executable, "-m", "tests.trainer_dying", "never", "0", f"--strategy={strategy}"]
    return [*trainer, *_FLAGS, f"--workdir={workdir}", f"--data_dir={data_dir}"]


def _start_two(workdir: Path, data_dir: str) -> list[subprocess.Popen]:
    sockets = [socket.socket() for _ in range(2)]
    for a_socket in sockets:
        a_socket.bind(("localhost", 0))
    addresses = [f"localhost:{a_socket.getsockname()[1]}" for a_socket in sockets]
    for a_socket in sockets:
        a_socket.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                _command(workdir, data_dir, "multi_worker"),
                env=os.environ | {"TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def _finish(processes: list[subprocess.Popen], code: int) -> None:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * 2, "\n".join(outputs)


@pytest.mark.slow
def test_two_workers_train_as_one_process_and_stop_together(data_dir, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    subprocess.run(_command(alone, data_dir, "one_device"), check=True, capture_output=True)

    processes = _start_two(together, data_dir)
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if "evaluated" in line:
            break
    processes[1].send_signal(signal.SIGTERM)  # the one that does not write
    _finish(processes, 42)
    _finish(_start_two(together, data_dir), 0)

    for kind, keys in (("train", ("loss",)), ("eval", ("top1_accuracy", "loss"))):
        expected, actual = (
            read_records(path / "metrics.jsonl", kind) for path in (alone, together)
        )
        assert [r["step"] for r in actual] == [r["step"] for r in expected]
        for key in keys:
            values, others = ([r[key] for r in records] for records in (actual, expected))
            # Up to the first evaluation; then training itself magnifies rounding (test_steps.py).
            tolerance = {"rtol": 1e-4} if kind == "train" else {"atol": 0.01}
            first = 20 if kind == "train" else 1
            np.testing.assert_allclose(values[:first], others[:first], **tolerance)
    names = sorted(path.name for path in together.iterdir())
    assert names == [
        ".lock",
        "DONE",
        "checkpoints",
        "config.json",
        "eval",
        "metrics.jsonl",
        "train",
    ]

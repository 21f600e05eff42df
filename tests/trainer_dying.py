"""`python -m tests.trainer_dying WHERE COUNT FLAGS…`: the trainer, which kills itself (SIGKILL).

A kill from outside cannot hit the microseconds of a write. WHERE is `never`, or the state in which
the process dies, the COUNT-th time that it gets there:

    checkpoint   a checkpoint's data are on disk, the pointer to it is not
    half         only half of them are
    best         the best checkpoint is saved, the ordinary one of the same step is not
    metrics      half a line of metrics.jsonl and half a record of TensorBoard are on disk
    resume       the training's TensorBoard files are cut back to the checkpoint, evaluation's not
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import main as trainer_main


def _die_in(owner: Any, name: str, count: int, last_deed: Callable, before: bool) -> None:
    """Makes a function's `count`-th call run `last_deed` and die, before or after its work."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(name)
        result = None if before and len(calls) == count else original(*args, **kwargs)
        if len(calls) == count:
            last_deed(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, function)


def _arm(where: str, count: int) -> None:
    from tensorflow.python.checkpoint import checkpoint_management

    from trainer.run import checkpoint, log

    def nothing(*args) -> None:
        pass

    def halve_data(folder, *args) -> None:
        newest = max(Path(folder).glob("ckpt-*.data*"), key=lambda path: path.stat().st_mtime_ns)
        os.truncate(newest, newest.stat().st_size // 2)

    def halve_logs(run_log, *args) -> None:
        run_log.flush()
        metrics = Path(run_log._metrics.name)
        for path in (metrics, max(metrics.parent.glob("train/events*"))):
            os.truncate(path, path.stat().st_size - 20)

    pointer = "update_checkpoint_state_internal"
    places = {
        "checkpoint": (checkpoint_management, pointer, count, nothing, True),
        "half": (checkpoint_management, pointer, count, halve_data, True),
        "best": (checkpoint.Checkpoints, "save_best", count, nothing, False),
        "metrics": (log.RunLog, "train", count, halve_logs, False),
        "resume": (log, "_drop_events_after", count, nothing, False),
    }
    if where != "never":
        _die_in(*places[where])


if __name__ == "__main__":
    _arm(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    trainer_main.main()

"""Saves and restores a run: the state, and with it what makes a checkpoint useful alone."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import config as config_lib
from trainer.config import Config
from trainer.data.source import Source
from trainer.errors import UserError
from trainer.state import TrainState


def run_metadata(config: Config, source: Source) -> dict[str, Any]:
    """What a reader of the weights needs beside them: config, class names, normalisation."""
    return {
        "config": config_lib.to_dict(config),
        "class_names": list(source.class_names),
        "channels": source.channels,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }


class _Metadata(tf.train.experimental.PythonState):
    """Text inside a checkpoint."""

    def __init__(self, metadata: dict[str, Any]):
        self.text = json.dumps(metadata)

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        self.text = string_value


class Checkpoints:
    """The checkpoints of a run: `checkpoints/ckpt-STEP`, the last N, and `checkpoints/best/`.

    Only the chief writes: all variables are mirrored, so that its copies are everybody's. A kill
    during a write leaves the earlier checkpoints as they were: TensorFlow writes to other names,
    and moves the pointer, the file `checkpoint`, last and atomically.
    """

    def __init__(
        self, folder: Path, state: TrainState, metadata: dict[str, Any], keep: int, is_chief: bool
    ):
        self._is_chief = is_chief
        self._state = state
        self._checkpoint = tf.train.Checkpoint(state=state, metadata=_Metadata(metadata))
        self._last = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=keep)
        self._best = tf.train.CheckpointManager(
            self._checkpoint, str(folder / "best"), max_to_keep=1
        )

    def restore(self) -> int:
        """Restores the newest checkpoint that can be read and returns its step; 0 where there is
        none.

        Raises:
            UserError: where there are checkpoints, and none can be read.
        """
        failed = []
        for path in reversed(self._last.checkpoints):
            try:
                # Matched both ways: no variable without a value and no value without a variable.
                self._checkpoint.restore(path).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
                failed.append(f"{path} ({type(error).__name__})")
                continue
            if failed:
                print(f"warning: cannot be read: {', '.join(failed)}; going on from {path}")
            return int(self._state.global_step.numpy())
        if failed:
            raise UserError(
                f"no checkpoint can be read: {', '.join(failed)}; restore the files, or name "
                f"another --workdir to start anew"
            )
        return 0

    def save(self, step: int) -> None:
        if self._is_chief:
            self._last.save(checkpoint_number=step)

    def save_best(self, step: int) -> None:
        if self._is_chief:
            self._best.save(checkpoint_number=step)

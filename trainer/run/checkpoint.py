"""Saves and restores a run: the state, and the metadata that make a checkpoint useful by itself."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer import config as config_lib
from trainer.config import Config
from trainer.data.source import Source
from trainer.errors import UserError
from trainer.step.state import TrainState


def run_metadata(config: Config, source: Source) -> dict[str, Any]:
    """Returns what the use of the weights needs: config, class names, normalisation."""
    return {
        "config": config_lib.to_dict(config),
        "class_names": list(source.class_names),
        "train_examples": len(source),
        "channels": source.channels,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }


class _Metadata(tf.train.experimental.PythonState):
    """JSON text inside a checkpoint."""

    def __init__(self, metadata: dict[str, Any]):
        self.text = json.dumps(metadata)

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        """Keeps this process's metadata: settings that do not change results may have changed."""


class Checkpoints:
    """The checkpoints of a run: `checkpoints/ckpt-STEP`, the last N, and `checkpoints/best/`.

    Only the chief writes: all variables are mirrored, so its copies stand for all. A kill during a
    write leaves the earlier checkpoints intact: TensorFlow writes to other names, and moves the
    pointer, the file `checkpoint`, last and atomically.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainState,
        metadata: dict[str, Any],
        keep: int,
        is_chief: bool,
        device: str | None = None,
    ):
        """
        Args:
            device: reads and writes the files; None for the devices of the variables.
        """
        self._folder = folder
        self._keep = keep
        self._is_chief = is_chief
        self._options = tf.train.CheckpointOptions(experimental_io_device=device)
        self._state = state
        self._checkpoint = tf.train.Checkpoint(state=state, metadata=_Metadata(metadata))
        self._metadata = metadata
        if is_chief:
            for name in (folder, folder / "best"):
                if _pointed_at(name) is None:
                    (name / "checkpoint").unlink(missing_ok=True)  # damaged: TensorFlow would stop
            self._best = tf.train.CheckpointManager(
                self._checkpoint, str(folder / "best"), max_to_keep=1
            )
            self._last = self._manager()

    def _manager(self) -> tf.train.CheckpointManager:
        return tf.train.CheckpointManager(
            self._checkpoint, str(self._folder), max_to_keep=self._keep
        )

    def exist(self) -> bool:
        """Whether there is a checkpoint to resume from, readable or not."""
        return bool(_pointed_at(self._folder) or _by_name(self._folder))

    def restore(self) -> int | None:
        """Restores the newest readable checkpoint and returns its step, or None if there is none.

        If the pointer is lost or damaged, checkpoints are found by their names.

        Raises:
            UserError: if there are checkpoints, but none can be read.
        """
        failed = []
        # From the folder, not from the manager: another worker's manager does not see what the
        # chief has saved since.
        pointed_at = _pointed_at(self._folder)
        paths = pointed_at or _by_name(self._folder)
        for path in reversed(paths):
            try:
                self._refuse_another_run(path)
                # Every variable must get a value.
                self._checkpoint.restore(path, self._options).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, ValueError, IndexError) as error:
                failed.append(f"{path} ({type(error).__name__})")
                continue
            if failed:
                print(f"warning: cannot be read: {', '.join(failed)}; resuming from {path}")
            if not pointed_at and self._is_chief:
                good = paths[: paths.index(path) + 1]
                tf.compat.v1.train.update_checkpoint_state(
                    str(self._folder),
                    path,
                    good,
                    # Without times, the manager would keep them forever.
                    all_model_checkpoint_timestamps=[
                        Path(f"{one}.index").stat().st_mtime for one in good
                    ],
                    last_preserved_timestamp=0.0,
                )
                self._last = self._manager()
            return int(self._state.global_step.numpy())
        # A kill during the very first save leaves an unreadable one that nothing points to.
        if failed and (pointed_at or len(failed) > 1):
            raise UserError(
                f"no checkpoint can be read: {', '.join(failed)}; restore the files, or name "
                f"another --workdir to start from scratch"
            )
        return None

    def _refuse_another_run(self, path: str) -> None:
        """Refuses a checkpoint copied from another run: it would load if its shapes fit."""
        reader = tf.train.load_checkpoint(path)
        text = reader.get_tensor("metadata/.ATTRIBUTES/py_state")
        saved = json.loads(text)
        different = config_lib.differences(self._metadata["config"], saved["config"])
        if different:
            raise UserError(
                f"{path}: of a run that computes something else ({'; '.join(different)}); remove "
                f"it, or name another --workdir"
            )
        # Compared in order: class 3 must stay class 3.
        names = [f"class {n}" for n in range(len(self._metadata["class_names"]))]
        for what, is_now, was in [
            ("train_examples", self._metadata["train_examples"], saved.get("train_examples")),
            *zip_longest(names, self._metadata["class_names"], saved["class_names"]),
        ]:
            if is_now != was:
                raise UserError(
                    f"{path}: of a run on other data: {what} is {is_now!r}, was {was!r}; restore "
                    f"the data, or name another --workdir"
                )

    def save(self, step: int) -> None:
        if self._is_chief:
            self._last.save(checkpoint_number=step, options=self._options)

    def save_best(self, step: int) -> None:
        if self._is_chief:
            self._best.save(checkpoint_number=step, options=self._options)


def _pointed_at(folder: Path) -> list[str] | None:
    """Returns the checkpoints that the pointer names, oldest first; None if it is not text."""
    try:
        state = tf.train.get_checkpoint_state(str(folder))
    except ValueError:  # UnicodeDecodeError is one
        return None
    return list(state.all_model_checkpoint_paths) if state else []


def _by_name(folder: Path) -> list[str]:
    """Returns the checkpoints in the folder, oldest first."""
    found = [path.with_suffix("") for path in folder.glob("ckpt-*.index")]
    return [str(p) for p in sorted(found, key=lambda path: int(path.name.partition("-")[2]))]

"""Saves and restores a run: the state, and the metadata that make a checkpoint useful by itself."""

import json
from pathlib import Path

import tensorflow as tf

from trainer.errors import UserError
from trainer.run.best import Best
from trainer.run.identity import Metadata, refuse_another_run
from trainer.step.state import TrainState

# Where a checkpoint holds them. Before `best`, the state had a variable for its accuracy.
_METADATA, _BEST = "metadata/.ATTRIBUTES/py_state", "best/.ATTRIBUTES/py_state"
_BEST_ACCURACY = "state/best_accuracy/.ATTRIBUTES/VARIABLE_VALUE"


class _Text(tf.train.experimental.PythonState):
    """Text inside a checkpoint."""

    def __init__(self, text: str = ""):
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        """Keeps this process's text: settings that do not change results may have changed."""


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
        metadata: Metadata,
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
        text = _Text(json.dumps(metadata))
        self._checkpoint = tf.train.Checkpoint(state=state, metadata=text)
        self._metadata = metadata
        if is_chief:
            for name in (folder, folder / "best"):
                if _pointed_at(name) is None:
                    (name / "checkpoint").unlink(missing_ok=True)  # damaged: TensorFlow would stop
            self._best_text = _Text()
            self._best = tf.train.CheckpointManager(
                tf.train.Checkpoint(state=state, metadata=text, best=self._best_text),
                str(folder / "best"),
                max_to_keep=1,
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
        saved = json.loads(reader.get_tensor(_METADATA))
        refuse_another_run(self._metadata, saved, path, "remove it, or name another --workdir")

    def save(self, step: int) -> None:
        if self._is_chief:
            self._last.save(checkpoint_number=step, options=self._options)

    def save_best(self, best: Best) -> None:
        """Saves the state, whose evaluation is the best one, in place of the one before."""
        if self._is_chief:
            self._best_text.text = best.to_json()
            self._best.save(checkpoint_number=best.step, options=self._options)

    def read_best(self) -> Best:
        """Returns the record of the checkpoint in `best/`, or one that any evaluation beats.

        It is read from there, so that a rollback or a resume, which take the state back, cannot
        let a worse model replace it.
        """
        for path in reversed(_pointed_at(self._folder / "best") or []):
            try:
                reader = tf.train.load_checkpoint(path)
                if reader.has_tensor(_BEST):
                    return Best.from_json(reader.get_tensor(_BEST).decode())
                # Rounded to float32, and without its loss: an equal accuracy is better.
                return Best(accuracy=float(reader.get_tensor(_BEST_ACCURACY)) - 1e-7)
            except (tf.errors.OpError, ValueError, IndexError, TypeError):
                continue  # damaged: any model is better
        return Best()


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

"""A run's folder: its name, its owner and its config. Imports no TensorFlow.

WORKDIR/config.json  history.jsonl  metrics.jsonl  checkpoints/  train/  eval/  DONE
"""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.files import locked, write_atomically
from trainer.run import identity

# What a run writes before its first step is done, in the order in which it is removed.
_WRITTEN = (
    *("config.json", "history.jsonl", "metrics.jsonl", "bad_examples.txt"),
    *("checkpoints", "train", "eval"),
)


def default_path(config_path: str, config: Config) -> str:
    """`runs/<config>-<hash of the fields that change results>`."""
    return str(Path("runs") / f"{Path(config_path).stem}-{config_lib.short_hash(config)}")


class RunFolder:
    """The folder of one run, owned by this process until it ends, in whatever way.

    Attributes:
        is_resumed: whether an earlier process has left a run here.

    Args:
        path: the folder; created if needed.
        config: what this process would compute.
        is_chief: whether this process writes to it.

    Raises:
        UserError: if the folder cannot be written, another process trains in it, or it holds a run
            that computes something else.
    """

    def __init__(self, path: str, config: Config, is_chief: bool = True):
        if "://" in path:
            raise UserError(f"--workdir={path}: must be a local or mounted folder, not an address")
        self.path = Path(path).expanduser()
        self.is_chief = is_chief
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self._config_file = self.path / "config.json"
        self._done_file = self.path / "DONE"
        self._locks = contextlib.ExitStack()  # held until this process ends
        if self.is_chief:
            self._make_and_lock()
        self.is_resumed = self._config_file.exists() or self.checkpoints.exists()
        try:
            self._refuse_another_config(config)
        except UserError:
            self.remove()
            raise

    def _make_and_lock(self) -> None:
        path = self.path / ".lock"
        # Removed if the run does not begin: the folders that are new, the innermost first, and what
        # a run writes, unless it was there before.
        self._made = [f for f in (self.path, *self.path.parents) if not f.exists()]
        locks = [] if path.exists() else [path]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._locks.enter_context(locked(path, wait=False))
        except BlockingIOError:
            owner = path.read_text(encoding="utf-8").strip()
            raise UserError(
                f"--workdir={self.path}: in use by process {owner}; wait for it, stop it, or name "
                f"another folder"
            ) from None
        except OSError as error:
            no_locks = error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
            what = "its file system has no locks" if no_locks else "cannot be written"
            raise UserError(
                f"--workdir={self.path}: {what} ({error.strerror}); name another folder"
            ) from None
        # Now that no other process can write here.
        self._new = [self.path / name for name in _WRITTEN if not (self.path / name).exists()]
        self._new += locks
        lock.write(f"{os.getpid()}\n")
        lock.truncate()
        lock.flush()

    def _refuse_another_config(self, config: Config) -> None:
        saved = self.read_config()  # even if it is not compared: another program's is not replaced
        if saved is None or not self._is_worth_keeping:
            return
        if different := identity.config_differences(config, saved):
            raise UserError(
                f"--workdir={self.path}: holds a run that computes something else "
                f"({'; '.join(different)}); undo that change to resume it, or name another folder"
            )

    def refuse_another_run(self, metadata: identity.Metadata) -> list[str]:
        """Returns a line for each thing that has changed since the run began, and may.

        Args:
            metadata: of `identity.run_metadata`.

        Raises:
            UserError: if the folder holds a run on other data, or from other weights.
        """
        saved = self._read_config_to_resume()
        if saved is None:
            return []  # it starts anew on these data; or the checkpoints tell what it is
        identity.refuse_another_run(
            metadata,
            saved,
            f"--workdir={self.path}",
            "undo that change to resume it, or name another folder",
        )
        return identity.notes(metadata, saved)

    def as_it_began(self, metadata: identity.Metadata) -> dict[str, Any]:
        """Returns the metadata to save: those of `identity.run_metadata`, and of a run that
        resumes, the weights that it began with."""
        saved = self._read_config_to_resume()
        return dict(metadata) if saved is None else identity.as_it_began(metadata, saved)

    def _read_config_to_resume(self) -> dict[str, Any] | None:
        """Returns what `write_config` saved, or None if there is nothing to resume or to lose."""
        return self.read_config() if self._is_worth_keeping else None

    @property
    def _is_worth_keeping(self) -> bool:
        return self.is_done or self._has_checkpoint()

    def _has_checkpoint(self) -> bool:
        return any(self.checkpoints.glob("ckpt-*.index"))

    @property
    def has_begun(self) -> bool:
        """Whether a step of the run is done, or an earlier process has left a run here."""
        if self.is_resumed:
            return True
        try:
            return '"kind": "train"' in self.metrics.read_text(encoding="utf-8")
        except OSError:
            return False

    def remove(self) -> None:
        """Removes a run that has not begun, and nothing that was there before."""
        if not self.is_chief:
            return
        for path in self._new:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()

    def read_config(self) -> dict[str, Any] | None:
        """Returns what `write_config` saved, or None in a new folder."""
        try:
            return identity.read_metadata(self._config_file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._config_file}: cannot be read ({error}); name another --workdir"
            ) from None

    def write_config(self, metadata: dict[str, Any]) -> None:
        """Saves the metadata that checkpoints also hold: config, class names, normalisation."""
        write_atomically(self._config_file, json.dumps(metadata, indent=1) + "\n")

    @property
    def is_done(self) -> bool:
        return self._done_file.exists()

    @property
    def is_known(self) -> bool:
        """Whether what the run is can be told without TensorFlow, which reads the checkpoints."""
        return self._config_file.exists() or not self._has_checkpoint()

    def write_done(self, summary: str) -> None:
        write_atomically(self._done_file, summary + "\n")

    def read_done(self) -> str:
        return self._done_file.read_text(encoding="utf-8").rstrip()

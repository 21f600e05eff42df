"""What is told of the bad examples that a run skips: a line each, and `bad_examples.txt`."""

import threading
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

_SAID = 100  # bad examples that have a line each on the terminal


class BadExamples:
    """Tells each bad example once, on the terminal and in the run's folder.

    The file has a line for each: where it is, a tab, and what is wrong with it. Workers other than
    the first write files of their own, `bad_examples-<worker>.txt`: each tells what it has read.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder = folder
        self._say = say
        self._lock = threading.Lock()  # data are read in many threads
        self._known: dict[str, set[str]] = {}

    def reporter(
        self, context: tf.distribute.InputContext
    ) -> Callable[[str, Callable[[], str]], None]:
        """What a worker's input calls with where a bad example is, and what says what is wrong with
        it: asked once, since it reads the example again."""
        worker = context.input_pipeline_id
        name = f"bad_examples-{worker}.txt" if worker else "bad_examples.txt"
        return lambda where, why: self._tell(self._folder / name, where, why)

    def _tell(self, path: Path, where: str, why: Callable[[], str]) -> None:
        with self._lock:
            if path.name not in self._known:
                self._known[path.name] = _listed(path)
            known = self._known[path.name]
            if where in known:
                return
            known.add(where)
            count = len(known)
        reason = why() or "cannot be read, or could not"
        with self._lock:
            try:
                with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{where}\t{reason}\n")
            except OSError as error:  # what is told must not stop the run
                reason += f"; {path}: cannot be written ({error.strerror})"
        if count <= _SAID:
            self._say(f"bad example skipped ({count} so far, see {path}): {where}: {reason}")
        elif count % _SAID == 0:
            self._say(f"{count} bad examples skipped so far, see {path}")


def _listed(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    return {line.partition("\t")[0] for line in text.splitlines()}

"""Reports the bad examples that a run skips, on the terminal and in `bad_examples.txt`."""

import threading
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

_SHOWN = 100  # bad examples that get a line on the terminal


class BadExamples:
    """Reports each bad example once, on the terminal and in the run's folder.

    The file has a line for each: its place, a tab, and what is wrong with it. Each worker reports
    the examples that it reads; all but the first write to `bad_examples-<worker>.txt`.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder = folder
        self._say = say
        self._lock = threading.Lock()  # data are read in many threads
        self._known: dict[str, set[str]] = {}

    def reporter(
        self, context: tf.distribute.InputContext
    ) -> Callable[[str, Callable[[], str]], None]:
        """Returns the function that a worker's input calls for each bad example.

        Its arguments are the example's place, and a function that returns what is wrong with it,
        which is called once per example, since it reads the example again.
        """
        worker = context.input_pipeline_id
        name = f"bad_examples-{worker}.txt" if worker else "bad_examples.txt"
        return lambda where, why: self._report(self._folder / name, where, why)

    def _report(self, path: Path, where: str, why: Callable[[], str]) -> None:
        with self._lock:
            if path.name not in self._known:
                self._known[path.name] = _listed(path)
            known = self._known[path.name]
            if where in known:
                return
            known.add(where)
            count = len(known)
        reason = why() or "could not be read, though it can now"
        with self._lock:
            try:
                with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{where}\t{reason}\n")
            except OSError as error:  # a report must not stop the run
                reason += f"; {path}: cannot be written ({error.strerror})"
        if count <= _SHOWN:
            self._say(f"bad example skipped ({count} so far, see {path}): {where}: {reason}")
        elif count % _SHOWN == 0:
            self._say(f"{count} bad examples skipped so far, see {path}")


def _listed(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return set()
    return {line.partition("\t")[0] for line in text.splitlines()}

"""What is compared: processes, in environments of their own, that take turns."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.machine import ROOT, say

ENVIRONMENTS = ROOT / ".venv-benchmarks"


class Contender(NamedTuple):
    """`environment`: that of benchmarks/requirements-<environment>.txt, or "" for our own."""

    title: str
    environment: str
    module: str  # in benchmarks/peers
    variant: str = ""


def python_of(environment: str) -> str:
    """The interpreter of an environment, made now if it is not there or was made for other pins."""
    if not environment:
        return sys.executable
    folder = ENVIRONMENTS / environment
    python = folder / "bin" / "python"
    wanted = (ROOT / "benchmarks" / f"requirements-{environment}.txt").read_text(encoding="utf-8")
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        say(f"installing benchmarks/requirements-{environment}.txt in {folder}")
        venv.create(folder, with_pip=True, clear=True)
        (ENVIRONMENTS / ".gitignore").write_text("*\n", encoding="utf-8")
        requirements = ROOT / "benchmarks" / f"requirements-{environment}.txt"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "-r", requirements],
            check=True,
            stdout=sys.stderr,
        )
        installed.write_text(wanted, encoding="utf-8")
    return str(python)


class Worker:
    """A contender's process, ready to run; it speaks as benchmarks/peers/protocol.py says.

    Between its turns it is stopped, with all its children: an input would fill its buffers, at the
    cost of who is measured then, and begin its next turn with them.
    """

    def __init__(self, contender: Contender, arguments: Sequence[str]):
        self.contender = contender
        # Open for as long as the process runs.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        module = f"benchmarks.peers.{contender.module}"
        command = [python_of(contender.environment), "-m", module, *arguments]
        # The CPU is measured; and torch.compile's cache would make a second start look quicker.
        environment = {"CUDA_VISIBLE_DEVICES": "-1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        self._process = subprocess.Popen(
            [*command, f"--variant={contender.variant}"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.ready = self._answer()
        self._signal(signal.SIGSTOP)

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin
        self._signal(signal.SIGCONT)
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.contender.title} ended:\n{self._log.read()[-4000:]}")
        return json.loads(line)

    def close(self) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
        self._process.communicate("quit\n")
        self._log.close()


@contextlib.contextmanager
def started(
    contenders: Mapping[str, Contender], arguments: Sequence[str]
) -> Iterator[dict[str, Worker]]:
    """A process for each, all ready; closed at the end, and where one does not start."""
    workers: dict[str, Worker] = {}
    try:
        for name, contender in contenders.items():
            say(f"starting {name}")
            workers[name] = Worker(contender, arguments)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def take_turns(
    workers: Mapping[str, Worker], steps: Mapping[str, int], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """The measurements of each, so many steps in each: one at work at a time, each round beginning
    with another."""
    names = list(workers)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in [*names[turn:], *names[:turn]]:
            runs[name].append(workers[name].ask(f"run {steps[name]}"))
        say(f"round {index + 1} of {rounds}")
    return runs

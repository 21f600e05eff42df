"""Contenders: processes in separate environments that are measured in turns."""

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
    """A program to measure. `environment`: benchmarks/requirements-<environment>.txt; "": ours."""

    title: str
    environment: str
    module: str  # in benchmarks/peers
    variant: str = ""


def python_of(environment: str) -> str:
    """Returns an environment's interpreter; builds it if it is missing or its pins have changed."""
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
    """A contender's process, ready to run. Its protocol is in benchmarks/peers/protocol.py.

    Between turns the process and its children are stopped. Otherwise an input pipeline would fill
    its buffers during another contender's measurement and start its next turn with them full.
    """

    def __init__(self, contender: Contender, arguments: Sequence[str]):
        self.contender = contender
        # Open for as long as the process runs.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        module = f"benchmarks.peers.{contender.module}"
        command = [python_of(contender.environment), "-m", module, *arguments]
        # Measure the CPU. torch.compile's cache would make a second start look faster.
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
    """Starts a process for each contender and yields them when all are ready.

    Closes all of them at the end, and also if one does not start.
    """
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
    """Measures the workers one at a time, each round starting with a different one.

    Returns each worker's measurements, one per round of `steps[name]` steps.
    """
    names = list(workers)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in [*names[turn:], *names[:turn]]:
            runs[name].append(workers[name].ask(f"run {steps[name]}"))
        say(f"round {index + 1} of {rounds}")
    return runs

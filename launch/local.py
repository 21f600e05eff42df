"""Processes on this machine; a group talks over loopback. Needs Linux.

Each worker runs in its own session, writes to a file, and has the path of the run's record in its
environment. So the next `watch` finds it, however the last launcher ended.
"""

import contextlib
import dataclasses
import itertools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launch import logs, workdir
from launch.errors import LaunchError
from launch.group import tf_config
from launch.interface import Document, Observation
from launch.output import show
from launch.policy import State, first_to_end, shell_code
from launch.records import PRIVATE, Record
from launch.signals import Signals
from launch.spec import JobSpec, option

_LOOK_S = 0.2
_KILL_S = 10.0  # for the kernel to end a process after SIGKILL
_MARK = "LAUNCH_RECORD"
_LINES = 10  # shown from the log of a worker that failed


@dataclasses.dataclass(frozen=True)
class Options:
    python: str = option("", "Python that runs the trainer. Default: this one.")
    gpus: int = option(
        0,
        "GPUs to share among the workers. 0: all that CUDA_VISIBLE_DEVICES or nvidia-smi show.",
    )
    grace_s: int = option(30, "Seconds for a worker to save after SIGTERM.")


def check(spec: JobSpec) -> None:
    for flag, value in (("--gpus", spec.options.gpus), ("--grace-s", spec.options.grace_s)):
        if value < 0:
            raise LaunchError(f"{flag}={value}: must be at least 0")


def render(spec: JobSpec) -> list[Document]:
    """Returns one command per worker. PORT0, PORT1, … are chosen at the start, among free ports."""
    addresses = [f"localhost:PORT{rank}" for rank in range(spec.nodes)]
    documents = []
    for rank in range(spec.nodes):
        words = [
            f"{k}={shlex.quote(v)}" for k, v in _own_environment(spec, rank, addresses).items()
        ]
        command = " ".join([*words, shlex.join(_command(spec))])
        text = f"cd {shlex.quote(spec.folder)}\n{command}\n"
        documents.append(Document(f"worker {rank}", text))
    return documents


def _command(spec: JobSpec) -> list[str]:
    return [spec.options.python or sys.executable, *spec.trainer_args(workdir.name(spec))]


def _own_environment(spec: JobSpec, rank: int, addresses: list[str]) -> dict[str, str]:
    """Returns what a worker has in addition to the launcher's environment."""
    own = {"PYTHONUNBUFFERED": "1", **dict(spec.env), _MARK: spec.record_dir}
    return own | ({"TF_CONFIG": tf_config(addresses, rank)} if spec.is_group else {})


class Job:
    restarts_itself = False
    ends_with_watch = True
    poll_s = 0.0  # `observe` itself waits for a worker to end
    backoff_s = 1.0

    def __init__(self, record: Record, signals: Signals):
        self._record, self._spec, self._signals = record, record.spec, signals
        self._workers: list[subprocess.Popen[bytes]] = []
        self._tails: list[logs.Tail] = []

    def create(self, attempt: int) -> None:
        spec = self._spec
        with _free_ports(spec.nodes) as ports:
            addresses = [f"localhost:{port}" for port in ports]
        cores = sorted(os.sched_getaffinity(0))
        gpus = self._gpus()
        self._workers, self._tails = [], []
        for rank in range(spec.nodes):
            environment = os.environ | _own_environment(spec, rank, addresses)
            if not spec.is_group:
                environment.pop("TF_CONFIG", None)  # inherited from the launcher's caller
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(_share(gpus, rank, spec.nodes))
            # A child inherits its CPU affinity, so it is set before any of its threads exist.
            enough = len(cores) >= spec.nodes
            os.sched_setaffinity(0, _share(cores, rank, spec.nodes) if enough else cores)
            path = self._log(attempt, rank)
            try:
                with open(path, "ab", opener=_private) as log:
                    worker = subprocess.Popen(
                        _command(spec),
                        cwd=spec.folder,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C goes to the launcher, which lets them save
                    )
            except OSError as error:
                self.delete()
                raise LaunchError(
                    f"{error.filename}: cannot be started in {spec.folder} ({error.strerror}); "
                    f"fix --python or --folder"
                ) from None
            finally:
                os.sched_setaffinity(0, cores)
            self._workers.append(worker)
            self._tails.append(logs.Tail(path, f"[{rank}] "))

    def observe(self) -> Observation:
        """Waits briefly for a worker to end, and prints what the workers wrote meanwhile."""
        if not self._workers:  # another launcher started them, or died before it did
            return Observation(State.PREEMPTED, message="its launcher ended before the run")
        with contextlib.ExitStack() as stack:
            watched = [
                stack.enter_context(_pidfd(worker.pid))
                for worker in self._workers
                if worker.returncode is None
            ]
            self._signals.wait(_LOOK_S, watched)
        codes = [worker.poll() for worker in self._workers]
        self._print()
        first = first_to_end([None if code is None else shell_code(code) for code in codes])
        if first is not None:
            return self._failed(first, codes[first] or 0)
        if None in codes:
            return Observation(State.RUNNING)
        return Observation(State.SUCCEEDED, exit_code=0)

    def _failed(self, rank: int, returncode: int) -> Observation:
        code = shell_code(returncode)
        how = f", by {signal.Signals(-returncode).name}" if returncode < 0 else ""
        message = f"worker {rank} of {self._spec.nodes} ended first, with {code}{how}"
        lines = logs.last_lines(
            self._log(self._record.restarts.attempt, rank), _LINES, f"[{rank}] "
        )
        if lines and self._spec.nodes > 1:  # its lines are mixed with those of other workers
            show("\n".join([f"the last lines of worker {rank}:", *lines]))
        return Observation(State.FAILED, exit_code=code, message=message)

    def delete(self) -> None:
        """Sends SIGTERM, so that the workers save; SIGKILL after --grace-s or a second signal."""
        until = self._signals.now() + self._spec.options.grace_s
        self._send(signal.SIGTERM)
        while self._alive() and self._signals.now() < until:
            if self._signals.hurry:
                break
            self._signals.wait(_LOOK_S)
            self._print()
        until = self._signals.now() + _KILL_S
        while self._alive():
            self._send(signal.SIGKILL)
            if self._signals.now() > until:
                raise LaunchError(
                    f"{self._record.spec.name}: processes {_marked(self._record)} do not end; end "
                    f"them by hand"
                )
            self._signals.wait(_LOOK_S)
        self._print(last=True)
        self._workers = []

    def progress(self) -> str:
        return workdir.checkpoint_mark(self._spec)

    def logs(self, follow: bool) -> Iterator[str]:
        record = self._record
        return logs.of_starts(record, self._signals, lambda: follow and record.is_watched)

    def _gpus(self) -> list[str]:
        """Returns the GPUs of all workers, by their names for CUDA_VISIBLE_DEVICES."""
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        if named is not None:
            names = [name.strip() for name in named.split(",") if name.strip()]
            gpus = list(
                itertools.takewhile(lambda name: name != "-1", names)
            )  # CUDA ignores -1 and what follows
        elif shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--list-gpus"]
            listed = subprocess.run(command, check=False, capture_output=True, text=True)
            text = listed.stdout if listed.returncode == 0 else ""
            lines = [line for line in text.splitlines() if line.startswith("GPU ")]
            gpus = [str(i) for i, _ in enumerate(lines)]
        else:
            gpus = []
        asked = self._spec.options.gpus
        if asked > len(gpus):
            raise LaunchError(f"--gpus={asked}: this machine shows {len(gpus)}; ask for fewer")
        gpus = gpus[: asked or len(gpus)]
        if len(gpus) % self._spec.nodes:
            fewer = len(gpus) // self._spec.nodes * self._spec.nodes
            advice = f"--gpus={fewer}" if fewer else f"--nodes={len(gpus)}"
            raise LaunchError(
                f"--nodes={self._spec.nodes}: cannot share {len(gpus)} GPUs evenly; use {advice}"
            )
        return gpus

    def _log(self, attempt: int, rank: int) -> Path:
        return logs.path(self._record, attempt, rank)

    def _print(self, last: bool = False) -> None:
        for tail in self._tails:
            for line in tail.lines(last):
                show(line)

    def _alive(self) -> bool:
        for worker in self._workers:
            worker.poll()  # reaps it once it has ended
        return bool(_marked(self._record))

    def _send(self, number: int) -> None:
        """Sends a signal to the workers; SIGKILL also to the processes that they started.

        If only processes that workers left behind are alive, they get any signal.
        """
        pids = _marked(self._record)
        leaders = [pid for pid in pids if _leads(pid)]
        for pid in leaders if leaders and number != signal.SIGKILL else pids:
            with contextlib.suppress(ProcessLookupError), _pidfd(pid) as descriptor:
                if _is_marked(pid, self._record):  # its number may belong to another process by now
                    signal.pidfd_send_signal(descriptor, number)


def _private(path: str, flags: int) -> int:
    """An `opener` for files that only this account can read."""
    return os.open(path, flags, PRIVATE)


def _share(things: list, rank: int, number: int) -> list:
    """Returns this rank's part, as even as possible."""
    return things[rank * len(things) // number : (rank + 1) * len(things) // number]


@contextlib.contextmanager
def _free_ports(number: int) -> Iterator[list[int]]:
    """Yields distinct free ports.

    Another process may take one before the worker does. Then the worker ends with 200, and the
    next start uses other ports.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(number)]
        yield [a_socket.getsockname()[1] for a_socket in sockets]


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """Yields a descriptor of this process, which never means a later one of the same number."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _leads(pid: int) -> bool:
    """Returns whether it leads a session: workers do, the processes they start rarely do."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _is_marked(pid: int, record: Record) -> bool:
    """Returns whether a process belongs to a run."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, or belongs to another account
        return False
    return f"{_MARK}={record.spec.record_dir}".encode() in environment


def _marked(record: Record) -> list[int]:
    """Returns the live processes of a run, whichever launcher started them."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _is_marked(pid, record)]

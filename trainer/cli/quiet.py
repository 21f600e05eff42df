"""Keeps what TensorFlow and its libraries write off the terminal, unless it matters. No TensorFlow.

TF_CPP_MIN_LOG_LEVEL alone does not: the first lines (oneDNN, CUDA stubs, cuInit) are written by C++
to file descriptor 2 before its logging reads any setting, and libjpeg never reads it.
"""

import contextlib
import faulthandler
import io
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from absl import flags, logging

from trainer.cli.command import reopened
from trainer.data import decoder_log
from trainer.errors import UserError

_PATIENCE_S = 60.0  # a start that takes longer may hang: the reason may be in what is held back
_LINE_S = 0.1  # a line without an end that is older is passed on
_CHUNK = 2**16
_WELL = b"1"
# Another worker has ended. While there is work, the next step fails and says so; after the last
# one, it is no mistake.
_ENDED = re.compile(
    rb"^E\d{4} [^\n]* base_collective_executor\.cc:\d+\] BaseCollectiveExecutor::StartAbort "
    rb"UNAVAILABLE: [^\n]*(?:stopped sending heartbeats|RPC to coordination service)[^\n]*\n"
    rb"(?:(?:/job:|The tasks have crashed|Additional GRPC error|:UNKNOWN:|:\{)[^\n]*\n)*",
    re.MULTILINE,
)


@contextlib.contextmanager
def quiet_start(level: int = 2) -> Iterator[None]:
    """Holds back what is written to file descriptor 2 while TensorFlow is imported and lists its
    devices. `sys.stderr` still comes out at once. Put the import, and whatever must precede the
    first use of a device, in the block.

    The text is dropped if the block succeeds, or raises a UserError or a KeyboardInterrupt. It is
    printed on any other exception, if the process dies inside the block (for example of a signal),
    and once a minute if the block lasts that long.

    After a block that succeeds, the lines of image decoders, and those about workers that have
    ended, are left out for the rest of the process, and the decoders' warnings are counted in
    `decoder_log.tally`. All other lines are passed on at once.

    `--verbosity=0` or above holds nothing back and leaves nothing out.

    Args:
        level: TensorFlow logs nothing below it: 1 for warnings, 2 for errors.
    """
    chosen = flags.FLAGS["verbosity"].present
    if chosen and flags.FLAGS.verbosity >= logging.INFO:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(level))
    if not chosen:
        logging.set_verbosity(logging.ERROR)
    watched = None if "tensorflow" in sys.modules else _watch()
    try:
        yield
        # Not imported here: TensorFlow also writes when it lists devices for the first time.
        if tensorflow := sys.modules.get("tensorflow"):
            tensorflow.config.list_physical_devices()
    except BaseException as error:
        if watched is not None:
            watched.end(show=not isinstance(error, (UserError, KeyboardInterrupt)))
        raise
    if watched is not None:
        watched.filter()


class _Watched:
    """File descriptor 2, and a watcher: a child process that prints what is written to it.

    During the start, descriptor 2 is a file in memory, which the watcher prints only if something
    goes wrong. After it, descriptor 2 is a pipe: the watcher reads it, leaves the known lines out
    and passes the others on. It ends when all writers have, so this process may die in any way.

    A socket connects the two. `_WELL` means that the start went well, and the end of the stream,
    that this process has ended or wants the file printed. Anything else is faulthandler's report of
    a fatal signal. Its many short writes block until the watcher has printed what was written
    before, so this process cannot end earlier, and in a container take the watcher along.
    """

    def __init__(self) -> None:
        """Raises OSError if the system refuses any part of it."""
        # Never closed: a logger made meanwhile may keep the stream.
        self._stderr = os.dup(2)
        self._file = os.memfd_create("held")
        decoder_log.append_always(self._file)
        reader, self._pipe = os.pipe()
        self._socket, theirs = socket.socketpair()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the smallest possible
        tally = decoder_log.Tally()
        # Ctrl-C, and what a job's end sends to all of its processes, is for this one to handle.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._watcher = os.fork()
            if not self._watcher:
                try:
                    _close_all_but(self._stderr, self._file, reader, theirs.fileno())
                    _Watcher(self._stderr, self._file, reader, theirs, tally).run()
                finally:
                    os._exit(0)  # no traceback, and none of the parent's cleanup
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        os.close(reader)
        os.dup2(self._file, 2)
        decoder_log.tally = tally
        self._reported = faulthandler.is_enabled()
        faulthandler.enable(self._socket.fileno())
        self._stream = sys.stderr
        if isinstance(self._stream, io.TextIOWrapper) and _writes_to_2(self._stream):
            sys.stderr = reopened(self._stream, self._stderr)

    def filter(self) -> None:
        """Drops what was held back. From here on, descriptor 2 is the pipe."""
        os.dup2(self._pipe, 2)
        os.close(self._pipe)
        self._drop()
        self._socket.detach()  # faulthandler needs it to the end
        decoder_log.spare_file = self._file
        if not self._reported:
            faulthandler.disable()

    def end(self, show: bool) -> None:
        """Gives descriptor 2 back, and prints or drops the text."""
        sys.stderr = self._stream
        os.dup2(self._stderr, 2)
        os.close(self._pipe)
        decoder_log.tally = None
        if self._reported:
            faulthandler.enable(2)
        else:
            faulthandler.disable()
        if not show:
            self._drop()
        self._socket.close()
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: the system reaped it
            os.waitpid(self._watcher, 0)

    def _drop(self) -> None:
        os.ftruncate(self._file, 0)
        with contextlib.suppress(ConnectionError):  # the watcher was killed
            self._socket.send(_WELL)


def _watch() -> _Watched | None:
    """Returns None if that is impossible here: then nothing is held back, and nothing is lost."""
    if sys.stderr is None:  # the process was started with file descriptor 2 closed
        return None
    try:
        return _Watched()
    except OSError:
        return None


def _writes_to_2(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except OSError:  # a stand-in without one
        return False


def _close_all_but(*kept: int) -> None:
    """Closes the other descriptors: a copy would keep a lock or a pipe's end alive."""
    with contextlib.suppress(OSError):  # no /proc
        for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if descriptor not in kept:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(descriptor)


class _Watcher:
    """What runs in the watcher; see `_Watched`."""

    def __init__(
        self,
        stderr: int,
        file: int,
        pipe: int,
        parent: socket.socket,
        tally: decoder_log.Tally,
    ):
        self._stderr, self._file, self._pipe = stderr, file, pipe
        self._parent = parent
        self._tally = tally
        self._shown = 0  # bytes of the file
        self._rest = b""  # of the pipe: the beginning of a line

    def run(self) -> None:
        """Returns when nobody can write to the pipe or the socket any more."""
        self._hold()
        os.set_blocking(self._pipe, False)
        sources = {self._pipe: self._read_pipe, self._parent.fileno(): self._read_parent}
        poll = select.poll()
        for source in sources:
            poll.register(source, select.POLLIN)
        while sources:
            ready = poll.poll(_LINE_S * 1000 if self._rest else None)
            if not ready:
                self._pass_on(end=True)
            for source, _ in ready:
                if not sources[source]():
                    poll.unregister(source)
                    del sources[source]

    def _hold(self) -> None:
        """Waits for the end of the start, and prints the file if that does not come soon."""
        self._parent.settimeout(_PATIENCE_S)
        message = None
        while message is None:
            with contextlib.suppress(TimeoutError):
                message = self._parent.recv(1, socket.MSG_PEEK)  # taken off, it unblocks the parent
            if message == _WELL:
                self._parent.recv(1)
                self._shown = 0
                return
            self._write(self._unshown())

    def _read_pipe(self) -> bool:
        """Passes on what is there, and returns whether more may come."""
        while True:
            try:
                part = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                return True
            self._rest += part
            self._pass_on(end=not part or len(self._rest) > 2 * _CHUNK)
            if not part:
                return False

    def _read_parent(self) -> bool:
        """Prints the report of a fatal signal, and returns whether more may come.

        All that was written before comes first.
        """
        self._read_pipe()
        self._write(self._known_left_out(self._unshown()))
        report = self._parent.recv(_CHUNK)
        self._write(report)
        return bool(report)

    def _pass_on(self, end: bool) -> None:
        """Passes on the whole lines, and their rest if this is the end."""
        lines, newline, rest = self._rest.rpartition(b"\n")
        if end:
            rest, newline = b"", newline + rest
        self._rest = rest
        self._write(self._known_left_out(lines + newline))

    def _known_left_out(self, text: bytes) -> bytes:
        others, warnings = decoder_log.split(_ENDED.sub(b"", text))
        self._tally.add(warnings)
        return others

    def _unshown(self) -> bytes:
        size = os.fstat(self._file).st_size
        text = os.pread(self._file, max(0, size - self._shown), self._shown)
        self._shown += len(text)
        return text

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads it
            while text:
                text = text[os.write(self._stderr, text) :]

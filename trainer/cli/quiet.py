"""Keeps what TensorFlow and its libraries log while they start off the terminal. No TensorFlow.

TF_CPP_MIN_LOG_LEVEL alone does not: the first lines (oneDNN, CUDA stubs, cuInit) are written by C++
to file descriptor 2 before its logging reads any setting.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

from absl import flags, logging

from trainer.errors import UserError

_PATIENCE_S = 60.0  # a start that takes longer may hang: the reason may be in what is held back
_WELL = b"1"


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Holds back what is written to file descriptor 2 while TensorFlow is imported and lists its
    devices. `sys.stderr` still comes out at once. Put the import, and whatever must precede the
    first use of a device, in the block.

    The text is dropped if the block succeeds, or raises a UserError or a KeyboardInterrupt. It is
    printed on any other exception, if the process dies inside the block (for example of a signal),
    and once a minute if the block lasts that long. `--verbosity=0` or above holds nothing back.
    """
    chosen = flags.FLAGS["verbosity"].present
    if chosen and flags.FLAGS.verbosity >= logging.INFO:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not chosen:
        logging.set_verbosity(logging.ERROR)
    held = None if "tensorflow" in sys.modules else _hold()
    show = False
    try:
        yield
        # Not imported here: TensorFlow also writes when it lists devices for the first time.
        if tensorflow := sys.modules.get("tensorflow"):
            tensorflow.config.list_physical_devices()
    except BaseException as error:
        show = not isinstance(error, (UserError, KeyboardInterrupt))
        raise
    finally:
        if held is not None:
            held.release(show)


class _Held:
    """File descriptor 2 as a file in memory, and a watcher: a child process that prints the file.

    The watcher waits at a socket. `_WELL` means that all is well; the end of the stream, that this
    process has ended or wants the text printed; anything else is faulthandler's report of a fatal
    signal. Its many short writes block until the watcher has printed the text, so this process
    cannot end earlier, and in a container take the watcher along.
    """

    def __init__(self) -> None:
        """Raises OSError if the system refuses any part of it."""
        # Never closed: a logger made meanwhile may keep the stream.
        self._stderr = os.dup(2)
        text = os.memfd_create("held")
        self._socket, theirs = socket.socketpair()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the smallest possible
        self._watcher = os.fork()
        if not self._watcher:
            try:
                self._socket.close()
                _watch(theirs, text, self._stderr)
            finally:
                os._exit(0)  # no traceback, and none of the parent's cleanup
        theirs.close()
        os.dup2(text, 2)
        os.close(text)
        self._reported = faulthandler.is_enabled()
        faulthandler.enable(self._socket.fileno())
        self._stream = sys.stderr
        if _writes_to_2(self._stream):
            sys.stderr = open(  # noqa: SIM115  # never closed, see above
                self._stderr,
                "w",
                buffering=1,
                encoding=self._stream.encoding,
                errors=self._stream.errors,
                closefd=False,
            )

    def release(self, show: bool) -> None:
        """Gives file descriptor 2 back, and prints or drops the text."""
        sys.stderr = self._stream
        os.dup2(self._stderr, 2)
        if self._reported:
            faulthandler.enable(2)
        else:
            faulthandler.disable()
        if not show:
            with contextlib.suppress(ConnectionError):  # the watcher was killed
                self._socket.send(_WELL)
        self._socket.close()
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: the system reaped it
            os.waitpid(self._watcher, 0)


def _hold() -> _Held | None:
    """Returns None if that is impossible here: then the start is not quiet, but nothing is lost."""
    if sys.stderr is None:  # the process was started with file descriptor 2 closed
        return None
    try:
        return _Held()
    except OSError:
        return None


def _writes_to_2(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except OSError:  # a stand-in without one
        return False


def _watch(parent: socket.socket, text: int, stderr: int) -> None:
    """Runs in the watcher."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent handles it
    parent.settimeout(_PATIENCE_S)
    message = None
    shown = 0
    while message is None:
        with contextlib.suppress(TimeoutError):
            message = parent.recv(1, socket.MSG_PEEK)  # taken off, it would unblock the parent
        if message == _WELL:
            return
        while part := os.pread(text, 2**16, shown):
            shown += os.write(stderr, part)
    while report := parent.recv(2**16):
        os.write(stderr, report)

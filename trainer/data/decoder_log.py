"""What image decoders write to file descriptor 2: recognized, counted, and attributed to images. No
TensorFlow.

libjpeg writes its messages itself, whatever TensorFlow's log level. About an image that it cannot
decode it writes an error, which TensorFlow raises, too. About one that it decodes all the same, it
writes a warning: once per decoding, without the image's name.
"""

import contextlib
import fcntl
import mmap
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

from trainer.config import DataConfig

_Image = TypeVar("_Image")

_WARNINGS = (  # of libjpeg, then of libpng
    rb"Corrupt JPEG data: ",
    rb"Inconsistent progression sequence for component ",
    rb"Invalid SOS parameters for sequential JPEG",
    rb"Premature end of JPEG file",
    rb"Unknown Adobe color transform code ",
    rb"Warning: unknown JFIF revision number ",
    rb"W\d{4} [^\n]* png_io\.cc:\d+\] PNG warning: ",
)
_ERRORS = (
    rb"Arithmetic table 0x\w+ was not defined",
    rb"Bogus (?:DAC|DHT|DQT) (?:index|value) ",
    rb"Bogus (?:Huffman table definition|JPEG colorspace|marker length|sampling factors)",
    rb"CCIR601 sampling not implemented yet",
    rb"DCT coefficient out of range",
    rb"Empty (?:JPEG image \(DNL not supported\)|input file)",
    rb"Fractional sampling not implemented yet",
    rb"Huffman (?:code size table overflow|table 0x\w+ was not defined)",
    rb"IDCT output block size \d+ not supported",
    rb"Image too wide for this implementation",
    rb"Improper call to JPEG library in state ",
    rb"Input file read error",
    rb"Invalid (?:JPEG file structure: |component ID \d+ in SOS|crop request)",
    rb"Invalid progressive parameters Ss=",
    rb"JPEG datastream contains no image",
    rb"Maximum supported image dimension is \d+ pixels",
    rb"Not a JPEG file: starts with 0x",
    rb"Premature end of input file",
    rb"Quantization table 0x\w+ was not defined",
    rb"Requested feature was omitted at compile time",
    rb"Sampling factors too large for interleaved scan",
    rb"Sorry, arithmetic coding is not implemented",
    rb"Too many color components: ",
    rb"Unsupported (?:JPEG data precision|JPEG process: SOF type|marker type) ",
    rb"Unsupported color conversion request",
    # TensorFlow's own, such as: jpeg_mem.cc:331] Premature end of JPEG data. Stopped at line 30/192
    rb"[WE]\d{4} [^\n]* (?:jpeg_mem|jpeg_handle|png_io|gif_io|webp_io)\.cc:\d+\] ",
)
_LINE = re.compile(
    rb"^(?:(?P<warning>(?:%s)[^\n]*)|(?:%s)[^\n]*)\n" % (b"|".join(_WARNINGS), b"|".join(_ERRORS)),
    re.MULTILINE,
)
_LOG_HEAD = re.compile(r"^[A-Z]\d{4} .*?\] ")
_MINOR = re.compile(rb"^[IW]\d{4} [^\n]*\n", re.MULTILINE)  # TensorFlow's lines below an error


def split(text: bytes) -> tuple[bytes, list[str]]:
    """Returns the lines that are not of an image decoder, and the decoders' warnings."""
    warnings: list[str] = []

    def take(line: re.Match[bytes]) -> bytes:
        if line["warning"]:
            warnings.append(_LOG_HEAD.sub("", line["warning"].decode(errors="backslashreplace")))
        return b""

    return _LINE.sub(take, text), warnings


class Tally:
    """A number of warnings and one of them, in memory that a forked process shares."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)  # the number, 8 bytes, then the text
        self.noted = False  # not shared: whether `first_note` has been called with success

    def add(self, warnings: list[str]) -> None:
        """Called by one process only."""
        if not warnings:
            return
        if not self.count:
            text = warnings[0].encode()[: mmap.PAGESIZE - 9]
            self._memory[8 : 8 + len(text)] = text
        self._memory[:8] = (self.count + len(warnings)).to_bytes(8, "little")

    @property
    def count(self) -> int:
        """The number of warnings so far."""
        return int.from_bytes(self._memory[:8], "little")

    @property
    def example(self) -> str:
        """The first warning."""
        return self._memory[8:].rstrip(b"\0").decode(errors="ignore")


# Set while another process reads this one's file descriptor 2 and leaves the decoders' lines out
# (trainer/cli/quiet.py): its tally, and a file whose text it prints if this process dies.
tally: Tally | None = None
spare_file: int | None = None


def first_note(data: DataConfig, data_dir: str) -> str | None:
    """Returns a line about the warnings so far, once per process; None if there are none.

    Args:
        data_dir: of the images, for the command that lists them.
    """
    if tally is None or tally.noted or not tally.count:
        return None
    tally.noted = True
    note = (
        f"the image decoders have warned {tally.count:,} time(s) so far, such as "
        f"{tally.example!r}: such images are used as they are decoded"
    )
    if data.name != "folder" or data.eval_split is None:  # `prepare` has two splits
        return note
    flags = [f"--source={Path(data_dir) / (data.path or '')}"]
    splits = f"{data.train_split},{data.eval_split}"
    if splits != "train,val":
        flags.append(f"--splits={splits}")
    if data.eval_fraction is not None:
        flags.append(f"--eval_fraction={data.eval_fraction}")
    return f"{note}; python -m trainer.prepare {shlex.join(flags)} --to=nothing lists them"


class WarningFinder:
    """Finds the decoders' warnings about each image, while several threads decode.

    A context manager, inside of which file descriptor 2 is `spare_file`; without one, nothing is
    found. If the file does not grow while an image is decoded, there is no warning. If it does, the
    text may be about an image of another thread: then the image is decoded again, alone.
    """

    def __init__(self, threads: int):
        self._threads = threads
        self._turns = threading.Semaphore(threads)
        self._one = threading.Lock()

    def __enter__(self) -> Self:
        self._file = spare_file
        if self._file is not None:
            self._stderr = os.dup(2)
            os.dup2(self._file, 2)
        return self

    def __exit__(self, *error) -> None:
        if self._file is not None:
            os.dup2(self._stderr, 2)
            self._take(self._file)
            os.close(self._stderr)

    def decode(self, decode: Callable[[], _Image]) -> tuple[_Image, list[str]]:
        """Returns what `decode` returns, and the warnings. Called in at most `threads` threads."""
        if self._file is None:
            return decode(), []
        with self._turns:
            size = os.fstat(self._file).st_size
            image = decode()
            if os.fstat(self._file).st_size == size:
                return image, []
        with self._all_turns():
            self._take(self._file)
            image = decode()
            return image, self._take(self._file)

    @contextlib.contextmanager
    def _all_turns(self) -> Iterator[None]:
        with self._one:  # two that each had some would wait for each other
            for _ in range(self._threads):
                self._turns.acquire()
            try:
                yield
            finally:
                self._turns.release(self._threads)

    def _take(self, file: int) -> list[str]:
        """Empties the file, passes on what is not of a decoder, and returns the warnings."""
        text = os.pread(file, os.fstat(file).st_size, 0)
        os.ftruncate(file, 0)
        other, warnings = split(text)
        if other := _MINOR.sub(b"", other):
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(self._stderr, other)
        return list(dict.fromkeys(warnings))


def append_always(file: int) -> None:
    """Makes each write to a file go to its end, even after it was made shorter."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)

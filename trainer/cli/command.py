"""What all commands share: flags that answer in one line, and exit codes. No TensorFlow."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from trainer.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_GROUP_BROKEN,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    DivergedError,
    GroupError,
    PreemptedError,
    UserError,
)


def run(command: Callable[[], int], argv: Sequence[str] | None = None) -> None:
    """Parses the flags, runs the command and exits with its code, or with that of its error.

    Args:
        argv: the program's name and the flags; those of this process where there are none.
    """

    def main(argv: Sequence[str]) -> int:
        del argv
        try:
            return command()
        except GroupError as error:
            _exit_with_error(str(error), EXIT_GROUP_BROKEN)
        except UserError as error:
            _exit_with_error(str(error))
        except PreemptedError as error:
            print(f"stopped: {error}; the same command goes on from there")
            return EXIT_PREEMPTED
        except DivergedError as error:
            print(f"diverged: {error}", file=sys.stderr)
            return EXIT_DIVERGED
        except KeyboardInterrupt:  # training takes Ctrl-C over when it begins (see train.py)
            print("stopped", file=sys.stderr)
            return EXIT_INTERRUPTED

    _import_from_here()
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app.run(main, argv=argv, flags_parser=_parse_flags)


def _import_from_here() -> None:
    """Puts the current folder first on Python's path, as `python -m` does and scripts don't.

    So `--set model.name=my_models.tinynet` finds a module of this folder either way.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.insert(0, here)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with its errors as ours: one line, exit 2."""
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _exit_with_error(str(error).removeprefix("ERROR:: ") + " (--help lists all flags)")
    except SystemExit:  # how absl ends --help, with the code of a bug
        sys.exit(EXIT_DONE)
    if len(rest) > 1:
        _exit_with_error(f"{rest[1]!r}: arguments must be flags, as --config={rest[1]}")
    return rest


def quiet_libraries() -> None:
    """Takes away what TensorFlow and TFDS report of themselves; `--verbosity=0` brings it back."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)


def _exit_with_error(message: str, code: int = EXIT_USER_ERROR) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)  # one line, whatever is quoted
    sys.exit(code)

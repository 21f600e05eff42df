"""What all verbs share: flags that answer in one line, and exit codes. No TensorFlow."""

import io
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from trainer.cli import mistakes
from trainer.errors import (
    EXIT_DONE,
    EXIT_USER_ERROR,
    DivergedError,
    PreemptedError,
    UserError,
    exit_code_of,
)

_WIDTH = 80


def run(
    name: str,
    verb: Callable[[], int],
    own: flags.FlagValues,
    argv: list[str] | None = None,
) -> NoReturn:
    """Parses the flags, runs the verb, and exits with its code or with that of its error.

    Args:
        name: how the verb is typed, such as `trainer.main`.
        own: the verb's flags; all others but absl's are refused.
        argv: the program's name and the flags. Default: those of this process.
    """

    def main(argv: Sequence[str]) -> int:
        del argv
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # libraries' own lines, such as those of TFDS
        try:
            return verb()
        except UserError as error:
            _exit_with_error(str(error), error.exit_code)
        except PreemptedError as error:
            print(f"stopped: {error}; the same command resumes from there")
            return error.exit_code
        except DivergedError as error:
            print(f"diverged: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as error:
            # Once the training has begun, it handles Ctrl-C itself (see run/signals.py).
            print("stopped", file=sys.stderr)
            return exit_code_of(error)

    _import_from_here()
    _prepare_output()
    description = sys.modules[verb.__module__].__doc__ or ""
    app.run(main, argv=argv, flags_parser=lambda argv: _parse(name, description, own, argv))
    raise AssertionError("app.run exits")


class _Output(io.FileIO):
    """A standard stream. After its reader has gone, as in `| head`, it drops what is written.

    So the command finishes its work and exits with its own code. A training should not end because
    nobody reads its terminal output: its log is in its folder, and Ctrl-C still saves and ends it.
    """

    def write(self, b: Any, /) -> int:
        try:
            return super().write(b)
        except BrokenPipeError:
            return memoryview(b).nbytes


def _prepare_output() -> None:
    """Lets stdout and stderr take any text, such as a file's name, and outlive their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream is getattr(sys, f"__{name}__"):  # not replaced, for example by pytest
                setattr(sys, name, reopened(stream, stream.fileno()))


def reopened(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    """Returns a stream like this one that writes to `descriptor`, never closes it, and outlives
    its reader."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _import_from_here() -> None:
    """Puts the current folder first on Python's path, as `python -m` does and scripts don't.

    So `--set model.name=my_models.tinynet` finds a module of this folder either way.
    """
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.insert(0, here)


def _parse(name: str, description: str, own: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses with absl, whose errors become one line and exit 2."""
    known = flags.FlagValues()
    for some in (own, _absl_flags(), _HELP):
        known.append_flag_values(some)  # the flags themselves, not copies
    try:
        # With the flags of --flagfile: what is wrong may be one of them.
        argv = [argv[0], *known.read_flags_from_files(list(argv[1:]), force_gnu=False)]
        rest = known(argv)
    except flags.UnrecognizedFlagError as error:
        _exit_with_error(mistakes.unknown_flag(error.flagname, own, argv, name))
    except (flags.Error, ValueError) as error:
        _exit_with_error(mistakes.wrong_value(error, name))
    own.mark_as_parsed()
    flags.FLAGS.mark_as_parsed()
    if known["help"].value or known["helpfull"].value:
        shown = known if known["helpfull"].value else [*own, "verbosity"]
        print_and_exit(_help(description, [known[name] for name in sorted(shown) if len(name) > 1]))
    if len(rest) > 1:
        _exit_with_error(mistakes.word(argv, known, own, name))
    return rest


def _absl_flags() -> flags.FlagValues:
    """Returns absl's own flags.

    Not those of its help, which knows only what `__main__` defines; nor `--only_check_flags` and
    `--only_check_args`, which would approve a config that they don't check; nor `--log_dir`, which
    is not for our logs.
    """
    found = flags.FlagValues()
    for module, of_module in flags.FLAGS.flags_by_module_dict().items():
        for flag in of_module:
            if module.startswith("absl.") and not re.search("help|only_check|log_dir", flag.name):
                found[flag.name] = flag
    return found


_HELP = flags.FlagValues()
flags.DEFINE_bool("help", False, "List the verb's flags and exit.", _HELP, short_name="h")
flags.DEFINE_bool("helpfull", False, "List absl's flags too and exit.", _HELP)


def _help(description: str, shown: Sequence[flags.Flag]) -> str:
    lines = [description.strip(), ""]
    for flag in shown:
        default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if flag.boolean or default in (None, "") else f"={default}"
        lines.append(f"  --{'[no]' * flag.boolean}{flag.name}{default}")
        indent = " " * 6
        text = " ".join(_help_of(flag).split())
        lines += textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join([*lines, "", "--helpfull lists the flags of absl too."])


def _help_of(flag: flags.Flag) -> str:
    """Returns a flag's help without what absl puts into it."""
    text = flag.help or ""
    if flag.name == "verbosity":
        return "0 shows the libraries' own output too, such as that of TensorFlow's start."
    if isinstance(flag, flags.EnumFlag):
        values = flag.parser.enum_values
        text = text.removeprefix(f"<{'|'.join(values)}>: ")
        return f"{text} Values: {', '.join(values)}."
    return text.partition(";\n    repeat this option")[0]


def print_and_exit(text: str) -> NoReturn:
    """Prints what a flag such as `--help` asks for, and exits 0."""
    print(text)
    sys.exit(EXIT_DONE)


def _exit_with_error(message: str, code: int = EXIT_USER_ERROR) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)  # one line, whatever it quotes
    sys.exit(code)

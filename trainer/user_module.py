"""Modules of the user's own, which a config names: their errors in one line."""

import contextlib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.errors import UserError
from trainer.registry import module_of

_LONGEST_MESSAGE = 300  # of a library's error, which may be a page


def load(field: str, name: str, aliases: dict[str, str]) -> ModuleType:
    """Imports the module that `name` stands for: an alias, or a dotted name.

    Args:
        field: the config's field that has the name, for messages.

    Raises:
        UserError: if a module that is not ours fails; with its file and line.
    """
    with contextlib.nullcontext() if name in aliases else one_line_errors(field, name):
        return importlib.import_module(module_of(name, aliases))


@contextlib.contextmanager
def one_line_errors(
    field: str, name: str, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns an error of the user's module into a UserError with the module's file and line.

    Args:
        passing: errors that are raised as they are.
    """
    try:
        yield
    except (UserError, *passing):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{field} ({name}): {one_line(error, name)}; fix the module") from error


def one_line(error: BaseException, name: str) -> str:
    """Returns an error of the module `name` in one line, with the module's file and line."""
    place, cause = _blame(error, _folders(name))
    reason = cause.msg if isinstance(cause, SyntaxError) else str(cause)
    reason = " ".join(reason.split())[:_LONGEST_MESSAGE]
    return f"{place}{type(cause).__name__}: {reason}"


def defined_at(thing: Any) -> str:
    """Returns the file and line of a function or class, or a module's file, for a message."""
    try:
        file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return f"{getattr(thing, '__name__', thing)}"
    return _place(file or "", line)


def _place(file: str, line: int) -> str:
    path = Path(file)
    here = Path.cwd()
    shown = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return f"{shown}, line {line}" if line else shown


def _folders(name: str) -> list[str]:
    """Returns where the module's outermost package lies, or the module's file."""
    module = importlib.util.find_spec(name.partition(".")[0])
    if module is None:
        return []
    return [*(module.submodule_search_locations or [module.origin or ""])]


def _blame(error: BaseException, folders: list[str]) -> tuple[str, BaseException]:
    """Returns the innermost place in these folders that an error passed (or ""), and that error.

    Keras raises some errors again without the frames of the first one, so the errors that led to
    this one are searched too.
    """
    place, blamed = "", error
    cause: BaseException | None = error
    while cause is not None:
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(cause.__traceback__)]
        if isinstance(cause, SyntaxError) and cause.filename:
            frames.append((cause.filename, cause.lineno or 0))
        inside = [f for f in frames if any(Path(f[0]).is_relative_to(folder) for folder in folders)]
        if inside:
            place, blamed = f"{_place(*inside[-1])}: ", cause
        cause = cause.__cause__ or cause.__context__
    return place, blamed

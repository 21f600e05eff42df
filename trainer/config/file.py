"""Configs in and out: loads a file, overrides fields, and compares saved values."""

import dataclasses
import hashlib
import json
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.config import recipes
from trainer.config.fields import Config
from trainer.config.text import describe, parse, suggest
from trainer.errors import UserError

# Saved configs and checkpoints of earlier versions have these names, and resume.
_RENAMED = {"sync_bn": "model.sync_batch_norm"}


def load(path: str) -> Config:
    """Runs the config file that `path` names and returns the result of its `get_config()`.

    See `recipes.find` for the names that are not paths.

    Raises:
        UserError: if the file is missing, broken, or returns something else.
    """
    file = recipes.find(path)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        known = ", ".join(recipes.known())
        raise UserError(f"--config={path}: cannot be read ({reason}); known: {known}") from None
    # A module that dataclasses can look up, but no import: that would leave a cache behind.
    module = types.ModuleType("config_file")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(f"--config={path}: {line}{error.msg}") from None
    except UserError as error:
        raise UserError(f"--config={path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"--config={path}: {type(error).__name__}: {_one_line(error)}") from None
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config={path}: must define get_config() -> Config; it does not")
    try:
        config = module.get_config()
    except UserError as error:
        raise UserError(f"--config={path}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--config={path}: get_config() failed: {type(error).__name__}: {_one_line(error)}"
            f"{_new_name(error)}"
        ) from None
    if not isinstance(config, Config):
        raise UserError(
            f"--config={path}: get_config() must return a trainer.config.Config, "
            f"not {type(config).__name__}"
        )
    return config


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Returns the config with each `path=value` of `assignments` set, validated as a whole.

    The text is parsed by the field's type: `none`, `true`, tuples by comma.

    Raises:
        UserError: for an unknown field, a value of the wrong type or range, a contradiction.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise UserError(f"--set {assignment}: must be FIELD=VALUE")
        config = _replace(config, path.strip(), text.strip())
    config.validate()
    return config


def _replace(config: Config, path: str, text: str) -> Config:
    known = dict(_leaves(config))
    if path in _RENAMED:
        raise UserError(f"{path}: is now {_RENAMED[path]}")
    if path not in known:
        raise UserError(f"{path}: unknown field; {suggest(path, known)}")
    *parents, name = path.split(".")
    section = getattr(config, parents[0]) if parents else config
    annotation = typing.get_type_hints(type(section))[name]
    try:
        value = parse(text, annotation)
    except ValueError:
        raise UserError(f"{path}: must be {describe(annotation)}, not {text!r}") from None
    return _with(config, path, value)


def _with(config: Config, path: str, value: Any) -> Config:
    """Returns `config` with one field changed."""
    *parents, name = path.split(".")
    if not parents:
        return dataclasses.replace(config, **{name: value})
    section = dataclasses.replace(getattr(config, parents[0]), **{name: value})
    return dataclasses.replace(config, **{parents[0]: section})


def with_num_classes(config: Config, class_names: Sequence[str]) -> Config:
    """Returns the config with `model.num_classes` a number: that of the names, if it is none."""
    if config.model.num_classes is not None:
        return config
    return _with(config, "model.num_classes", len(class_names))


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def _paths_that_change_results(config: Config) -> set[str]:
    """Returns the paths of the fields that change the result."""
    return {p for p, field in _leaves(config) if field.metadata.get("changes_results", True)}


def to_dict(config: Config) -> dict[str, Any]:
    """Returns every field by its path, ready for JSON: `{"optimizer.learning_rate": 0.1, …}`."""
    values = {}
    for path, _ in _leaves(config):
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        values[path] = list(value) if isinstance(value, tuple) else value
    return values


def from_dict(values: Mapping[str, Any]) -> Config:
    """Returns the config whose `to_dict` these values are. Newer fields have their defaults.

    Raises:
        UserError: for an unknown field or a value that does not fit.
    """
    config = Config()
    for path, value in _with_new_names(values).items():
        if path not in dict(_leaves(config)):
            raise UserError(f"{path}: unknown field")
        config = _with(config, path, tuple(value) if isinstance(value, list) else value)
    return config


def differences(
    values: Mapping[str, Any], saved: Mapping[str, Any], leaving_out: Iterable[str] = ()
) -> list[str]:
    """Returns a text for each field that changes results and differs, both given by `to_dict`."""
    saved = _with_new_names(saved)
    return [
        f"{path} is {values[path]!r}, was {saved.get(path, 'not there')!r}"
        for path in sorted(_paths_that_change_results(Config()) - set(leaving_out))
        if path not in saved or saved[path] != values[path]
    ]


def short_hash(config: Config) -> str:
    """Returns eight hex digits of a hash of the fields that change results."""
    values = to_dict(config)
    kept = {path: values[path] for path in sorted(_paths_that_change_results(config))}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(path, path): value for path, value in values.items()}


def _new_name(error: BaseException) -> str:
    """Returns a hint if a config file gives a field by its earlier name."""
    names = [name for name in _RENAMED if f"keyword argument '{name}'" in str(error)]
    return f"; it is now {_RENAMED[names[0]]}" if names else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

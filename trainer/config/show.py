"""Prints what there is to set: `--help_config`, `--print_config`, and docs/config.md."""

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from trainer.config.fields import Config
from trainer.config.text import describe, spell

_WIDTH = 80
# What `--help_config` prints, for its flag, its first line and docs/config.md.
HELP_CONFIG = (
    "each field's default, type, range and meaning, and its value in the command's config if that "
    "differs"
)
_FREE = "may change when a run resumes"  # of a field that does not change results


class _Row(NamedTuple):
    path: str
    default: str
    value: str  # in the config
    values: str  # which it takes, in words
    meaning: str
    changes_results: bool


class _Group(NamedTuple):
    name: str  # "" for the fields without a section
    title: str
    rows: list[_Row]


def help_text(config: Config) -> str:
    """Returns every field with its default, the values that it takes, its meaning, and its value
    in `config` if that is another."""
    lines = [
        "--set FIELD=VALUE sets a field.",
        *textwrap.wrap(f"Below: {HELP_CONFIG}.", _WIDTH),
        "",
    ]
    for group in _groups(config):
        lines += [*textwrap.wrap(group.title, _WIDTH), "-" * _WIDTH]
        for row in group.rows:
            free = "" if row.changes_results else f"; {_FREE}"
            other = "" if row.value == row.default else f" (here {row.value})"
            lines.append(f"{row.path} = {row.default}{other}")
            lines += _indented(f"{row.values}{free}", "    ")
            lines += _indented(row.meaning, "    ")
        lines.append("")
    return "\n".join(lines)


def values_text(config: Config) -> str:
    """Returns the config as lines `path=value` that `--set` takes, under a comment a section."""
    lines = []
    for group in _groups(config):
        lines += [f"# {group.title}", *(f"{row.path}={row.value}" for row in group.rows), ""]
    return "\n".join(lines)


def markdown() -> str:
    """Returns docs/config.md."""
    lines = [
        "# The config, field by field",
        "",
        "Generated from `trainer/config/fields.py` by `python -m trainer.config > docs/config.md`.",
        "",
        "`--set FIELD=VALUE` sets a field, and `--print_config` prints the config that a command "
        f"would use. `--help_config` prints {HELP_CONFIG}. A field with a * does not change the "
        f"result: it {_FREE}.",
    ]
    for group in _groups(Config()):
        lines += ["", f"## {group.name}" if group.name else "## Run", "", group.title, ""]
        lines += ["| field | default | values | meaning |", "| --- | --- | --- | --- |"]
        for row in group.rows:
            free = "" if row.changes_results else " *"
            cells = (f"`{row.path}`{free}", f"`{row.default}`", row.values, row.meaning)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _groups(config: Config) -> Iterator[_Group]:
    """The fields by section, first those without one."""
    sections: dict[str, Any] = {"": config}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            sections[field.name] = value
    for name, section in sections.items():
        defaults = type(section)()
        annotations = typing.get_type_hints(type(section))
        rows = [
            _Row(
                f"{section.PATH}{field.name}",
                spell(getattr(defaults, field.name)),
                spell(getattr(section, field.name)),
                _values(annotations[field.name], field.metadata["rule"]),
                field.metadata["meaning"],
                field.metadata["changes_results"],
            )
            for field in dataclasses.fields(section)
            if "meaning" in field.metadata
        ]
        yield _Group(name, inspect.cleandoc(type(section).__doc__ or ""), rows)


def _values(annotation: Any, rule: Any) -> str:
    """The values that a field takes, in words: by its type and its rule."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    first, *others = typing.get_args(annotation) if is_union else (annotation,)
    if first is str and rule is not None:  # the rule describes the text completely
        return rule.text
    words = [_type(first) if rule is None else f"{_type(first)}, {rule.text}"]
    return ", or ".join([*words, *map(_type, others)])


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        return {int: "whole numbers", float: "numbers"}[arguments[0]] + " with commas"
    return "a number" if annotation is float else describe(annotation)


def _indented(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)

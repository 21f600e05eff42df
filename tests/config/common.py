"""Helpers for tests of the config: the dataclasses' fields, and refusals."""

import dataclasses
import typing
from pathlib import Path

import pytest

from trainer.config import Config, override
from trainer.errors import UserError

ROOT = Path(__file__).parents[2]


def fields(section: object = None, prefix: str = "") -> dict[str, typing.Any]:
    """Returns every field's path and annotation, from the dataclasses, not by trainer.config."""
    section = Config() if section is None else section
    found: dict[str, typing.Any] = {}
    for name, annotation in typing.get_type_hints(type(section)).items():
        if typing.get_origin(annotation) is typing.ClassVar:
            continue
        if dataclasses.is_dataclass(annotation):
            found |= fields(getattr(section, name), f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def refusal(*assignments: str, config: Config | None = None) -> str:
    """Returns the message that refuses these `--set`; it must be one line."""
    with pytest.raises(UserError) as caught:
        override(config or Config(), assignments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message

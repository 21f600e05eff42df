"""What a field is: its default, its meaning, and the rule for its values.

A rule is checked whenever a config is made, and its text is what `--help_config` prints: the two
cannot differ.
"""

import dataclasses
import typing
from collections.abc import Callable, Container, Mapping
from typing import Any, ClassVar, Protocol

from trainer.config.text import describe, matches, suggest
from trainer.errors import UserError
from trainer.registry import missing_module


class Rule(Protocol):
    """Which values of its type a field takes.

    Attributes:
        text: the rule in words.
    """

    @property
    def text(self) -> str: ...

    def problem(self, value: Any) -> str | None:
        """Returns the error for this value, without the field's name, or None if it has none."""
        ...


@dataclasses.dataclass(frozen=True)
class _Range:
    """A rule that completes "must be"; `holds` sees neither `none` nor words such as `auto`."""

    text: str
    holds: Callable[[Any], bool]

    def problem(self, value: Any) -> str | None:
        if value is None or isinstance(value, str) or self.holds(value):
            return None
        return f"must be {self.text}, not {value!r}"


def at_least(low: float) -> Rule:
    """Returns the rule for numbers from `low` on."""
    return _Range(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """Returns the rule for numbers greater than `low`."""
    return _Range(f"above {low}", lambda value: value > low)


def within(low: float, high: float, ends: str = "[]", text: str = "") -> Rule:
    """Returns the rule for an interval.

    Args:
        ends: its brackets; `[)` leaves `high` out.
        text: the rule in words. Default: the interval.
    """

    def holds(value: float) -> bool:
        above_low = value >= low if ends[0] == "[" else value > low
        return above_low and (value <= high if ends[1] == "]" else value < high)

    return _Range(text or f"in {ends[0]}{low}, {high}{ends[1]}", holds)


def among(values: Container[int], text: str) -> Rule:
    """Returns the rule for a few numbers; `text` lists them."""
    return _Range(text, lambda value: value in values)


def each(rule: Rule, at_least_one: bool = False) -> Rule:
    """Returns the rule for a tuple whose values each follow `rule`."""

    def holds(values: tuple[Any, ...]) -> bool:
        return all(rule.problem(value) is None for value in values) and (
            bool(values) or not at_least_one
        )

    return _Range(f"{rule.text} each" + ", at least one" * at_least_one, holds)


def increasing(rule: Rule) -> Rule:
    """Returns the rule for a tuple whose values follow `rule`, each greater than the one before."""

    def holds(values: tuple[float, ...]) -> bool:
        return each(rule).problem(values) is None and list(values) == sorted(set(values))

    return _Range(f"{rule.text} and increasing", holds)


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """The rule for a path that may be none."""

    text: str = "a path, or none"

    def problem(self, value: str | None) -> str | None:
        return f"must be {self.text}, not {value!r}" if value == "" else None


@dataclasses.dataclass(frozen=True)
class Name:
    """The rule for a name: one of `known`, or a module's, which has a dot.

    Args:
        what: what it is the name of, for messages.
        text: the known names in words.
    """

    known: Mapping[str, str]
    what: str
    text: str

    def problem(self, value: str) -> str | None:
        if value in self.known:
            return None
        module = value.removeprefix("./").removesuffix(".py").replace("/", ".")  # if it is a file
        if module != value and "." in module and missing_module(module) is None:
            return f"unknown {self.what} {value!r}; did you mean {module!r}?"
        if "." not in value:
            return f"unknown {self.what} {value!r}; {suggest(value, sorted(self.known))}"
        missing = missing_module(value)
        if missing is None:
            return None
        return (
            f"unknown {self.what} {value!r}: a name with a dot is a Python module, and there is no "
            f"module {missing} in this folder or on Python's path"
        )


def setting(
    default: Any, meaning: str, rule: Rule | None = None, *, changes_results: bool = True
) -> Any:
    """Returns a dataclass field.

    Args:
        meaning: one or more sentences, with units and the source; shown by `--help_config`.
        rule: which values of its type it takes; None: all.
        changes_results: whether runs that differ in it compute different things. If not, it is
            not part of a run's identity, and may differ when a run resumes.
    """
    metadata = {"meaning": meaning, "rule": rule, "changes_results": changes_results}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """A part of the config. Checks the type of each field, then its rule."""

    PATH: ClassVar[str] = ""

    def __post_init__(self) -> None:
        annotations = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            name, annotation = field.name, annotations[field.name]
            value = getattr(self, name)
            if annotation is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)  # 1 and 1.0 are one value, with one hash
            problem = None
            if not matches(value, annotation):
                problem = f"must be {describe(annotation)}, not {value!r}"
            elif (rule := field.metadata.get("rule")) is not None:
                problem = rule.problem(value)
            if problem is not None:
                raise UserError(f"{self.PATH}{name}: {problem}")

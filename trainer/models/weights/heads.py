"""Which rows of a loaded head belong to which classes of this run: by the classes' names."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_SHOWN = 5  # classes in a report


class HeadMatch(NamedTuple):
    """How the classes of loaded weights fit those of this run.

    Attributes:
        rows: the row in the loaded head for each of our classes, or -1 if it has none. None: the
            classes are matched by number, and there must be as many.
        is_same: whether the classes have the same names in the same order.
        report: a text for the user.
    """

    rows: tuple[int, ...] | None
    is_same: bool
    report: str


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> HeadMatch:
    """Matches the classes of this run with those of loaded weights.

    Classes whose names are 0, 1, 2, … in this order have no names: sources without names number
    them. The same numbers in another order, such as those of the folders 0, 1, 10, 2, are names.

    Args:
        ours: this run's class names.
        theirs: those of the weights; empty if they have none.
    """
    ours, theirs = tuple(ours), tuple(theirs)
    nameless = [
        who
        for who, names in (("the weights", theirs), ("these data", ours))
        if names == _numbers(len(names))
    ]
    if nameless and (ours == theirs or sorted(ours) != sorted(theirs)):
        reason = f"{' and '.join(nameless)} have no class names"
        return HeadMatch(None, False, f"head: {len(ours)} classes by number, since {reason}")
    if ours == theirs:
        report = f"head: the same {len(ours)} classes ({_list(ours)})"
        return HeadMatch(tuple(range(len(ours))), True, report)
    rows = _rows(ours, theirs)
    taken = [name for name, row in zip(ours, rows, strict=True) if row >= 0]
    others = [name for name, row in zip(ours, rows, strict=True) if row < 0]
    if not taken:
        report = f"none of the weights' classes ({_list(theirs)}) is one of these ({_list(ours)})"
        return HeadMatch(rows, False, f"head: from scratch, since {report}")
    if len(taken) == len(ours) == len(theirs):
        report = f"head: the same {len(ours)} classes in another order, reordered by name"
        return HeadMatch(rows, False, f"{report} ({_list(ours)})")
    report = f"head: {len(taken)} of {len(ours)} classes by name ({_list(taken)})"
    if others:
        report += f", from scratch: {_list(others)}"
    return HeadMatch(rows, False, report)


def _rows(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the row of each class, or -1. A name that occurs twice tells nothing."""
    count, count_theirs = Counter(ours), Counter(theirs)
    place = {name: row for row, name in enumerate(theirs) if count_theirs[name] == 1}
    return tuple(place.get(name, -1) if count[name] == 1 else -1 for name in ours)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _list(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *["…"][: len(names) > _SHOWN]])

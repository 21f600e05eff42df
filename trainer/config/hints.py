"""What to type instead of a name that is not a field or a flag."""

import difflib
import re
import shlex
from collections.abc import Callable, Mapping

from trainer.config.other_names import FORMS

_ALIKE = 0.84  # `norm_weight_decay` and `weight_decay` have 0.83, and are not the same
_MOST = 3  # fields to suggest at once
_FLAGS_OF_RUNS = ("set", "config", "data_dir", "workdir", "strategy", "tpu")  # for wrong fields
_FLAG = re.compile(r"--(\w+)")
_SETTING = re.compile(r"--set ([\w.]+)=\{\}")


def hint(
    name: str,
    value: str | None,
    fields: Mapping[str, str],
    flags: Mapping[str, str] | None,
    problem: Callable[[str, str], str | None],
) -> str | None:
    """Returns what to type instead of `name`, as a clause of a message; None if nothing is near.

    Args:
        name: a field, or a flag without its dashes; in any case, with `-` or `_`.
        value: what was given as its value, if anything.
        fields: the form that sets each field, such as `--set seed={}`, by path.
        flags: the form of each flag of the command, such as `--tpu={}`; None if `name` is a field.
        problem: returns why a field does not take a value, or None if it does.
    """
    plain = name.lower().replace("-", "_")
    last = plain.rpartition(".")[2]
    exact = {**fields, **(flags or {})}.get(plain)
    forms = [exact] if exact else _others(last, flags)
    opposite = re.fullmatch(r"no_?(\w+)", last)
    if not forms and value is None and opposite:  # absl's --noflag
        text = hint(opposite[1], "false", fields, flags, problem)
        return text if "false" in (text or "") else None
    most = 1
    if not forms:
        forms, most = _near(plain, fields, flags or {}), _MOST
    filled = [_filled(form, value, problem) for form in forms]
    texts = [text for text, fits in filled if fits] or [text for text, _ in filled]
    text = " or ".join(texts[:most])
    return f"did you mean {text}?" if text.startswith("--") else text or None


def _others(name: str, flags: Mapping[str, str] | None) -> list[str]:
    """Returns what the table has for this name and the command can take."""
    available = {*(_FLAGS_OF_RUNS if flags is None else flags), "verbosity"}
    return [form for form in FORMS.get(name, ()) if {*_FLAG.findall(form)} <= available]


def _near(name: str, fields: Mapping[str, str], flags: Mapping[str, str]) -> list[str]:
    """Returns the forms of the fields, or of the flag, whose names are most like this one."""
    section, _, last = name.rpartition(".")
    by_last: dict[str, list[str]] = {}
    for path in fields:
        by_last.setdefault(path.rpartition(".")[2], []).append(path)
    found = by_last.get(last) or []
    if not found and "_" in last:  # `loss_scale`; of one word, such as `scale`, it means little
        found = [path for path in fields if path.endswith(f"_{last}")]
    if not found:
        alike = [flag for flag in flags if flag.startswith(f"{last}_")]
        if len(alike) != 1:
            alike = difflib.get_close_matches(last, [*flags, *by_last], n=1, cutoff=_ALIKE)
        if alike and alike[0] in flags:
            return [flags[alike[0]]]
        found = by_last[alike[0]] if alike else []
    found = [path for path in found if path.startswith(f"{section}.")] or found
    return [fields[path] for path in found] if len(found) <= _MOST else []  # else: no idea


def _filled(
    form: str, value: str | None, problem: Callable[[str, str], str | None]
) -> tuple[str, bool]:
    """Returns a form with the value, or with … and the reason if its field does not take it.

    Returns:
        The text, and whether the value fits.
    """
    setting = _SETTING.search(form)
    if value is None and setting and "true or false" in (problem(setting[1], "") or ""):
        value = "true"  # a flag without a value
    reason = problem(setting[1], value) if setting and value is not None else None
    if reason:
        return form.replace("{}", "…") + f" ({reason.partition('; known: ')[0]})", False
    return form.replace("{}", "…" if value is None else shlex.quote(value)), True

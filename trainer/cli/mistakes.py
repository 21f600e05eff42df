"""What to type instead of a flag that a verb does not have, or of a word that is not a flag."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from trainer import config as config_lib
from trainer.config import recipes
from trainer.registry import MODELS

_NUMBER = re.compile(r"-?\.?\d[\d.e-]*")
# absl's words about a flag's value, and ours.
_REASONS = (
    (r"Missing value for flag (\S+)", r"\1: has no value; write \1=VALUE"),
    (r"flag (\S+): invalid literal for int\(\).*", r"\1: must be a whole number"),
    (r"flag (\S+): could not convert string to float.*", r"\1: must be a number"),
    (r"flag (\S+): \('Non-boolean argument.*", r"\1: must be true or false, or have no value"),
    (r"flag (\S+): value should be one of <(.*)>", r"\1: must be one of \2"),
    (r"flag (\S+): \S+ is not (?:a )?(.*)", r"\1: must be a \2"),
    (r"flag (\S+): (.*)", r"\1: \2"),
)


def unknown_flag(flag: str, own: flags.FlagValues, argv: Sequence[str], name: str) -> str:
    """Returns the message for a flag that the verb `name` does not have.

    Args:
        flag: without its dashes and its value.
        own: the verb's flags.
        argv: the whole command line.
    """
    value = _value_of(flag, argv)
    plain = flag.strip("-").removeprefix("config.")  # as for ml_collections
    if short := re.fullmatch(r"([a-z])(\d+)", plain):  # -b64
        plain, value = short[1], short[2]
    if plain.startswith("set "):
        hint = f"--set and its value are two words: leave out the quotes around --{plain}"
    else:
        hint = config_lib.hint(plain, value, _forms(own))
    return f"--{flag}: not a flag of {name}; {hint or _help(own, name)}"


def wrong_value(error: Exception, name: str) -> str:
    """Returns the message for absl's error about the value of a flag of the verb `name`."""
    text = " ".join(str(error).removeprefix("ERROR:: ").split())
    for pattern, ours in _REASONS:
        if found := re.fullmatch(pattern, text):
            text = found.expand(ours).replace("|", ", ")
            break
    return f"{text} (--help lists the flags of {name})"


def word(argv: Sequence[str], known: flags.FlagValues, own: flags.FlagValues, name: str) -> str:
    """Returns the message for the first word of the command line that no flag takes.

    Args:
        known: all flags that the command takes, `own` and absl's.
    """
    place = _first_word(argv, known)
    before, words = list(argv[:place]), list(argv[place:])
    readings = (_spaced_setting, _value, _bare_setting, _thing)
    found = (read(before, words, own) for read in readings)
    hint = next((hint for hint in found if hint), None) or _help(own, name)
    return f"{words[0]!r}: arguments must be flags; {hint}"


def _first_word(argv: Sequence[str], known: flags.FlagValues) -> int:
    """Returns the place of the first word that is neither a flag nor a flag's value."""
    places = iter(range(1, len(argv)))
    for place in places:
        flag, separator, _ = argv[place].lstrip("-").partition("=")
        if argv[place] == "--":
            return place + 1
        if not argv[place].startswith("-") or not flag:
            return place
        if not separator and flag in known and not known[flag].boolean:
            next(places)
    raise ValueError(f"all words of {argv} are flags or values")


def _spaced_setting(before: list[str], words: list[str], own: flags.FlagValues) -> str | None:
    """Reads a setting with spaces, such as `--set seed 3` or `--set data.mean=0.5 0.5 0.5`."""
    if before[-2:-1] in (["--set"], ["-set"]):
        text = before[-1]
    else:
        flag, _, text = before[-1].partition("=")
        text = text if flag in ("--set", "-set") else ""
    field, _, value = text.partition("=")
    if not field or (value and not (_NUMBER.fullmatch(value) and _numbers(words))):
        return None  # a whole setting: this word begins another
    hint = config_lib.hint(field, _value_in([value, *words] if value else words), _forms(own))
    return f"a setting is one word, FIELD=VALUE; {hint or config_lib.HELP_FIELDS}"


def _bare_setting(before: list[str], words: list[str], own: flags.FlagValues) -> str | None:
    """Reads a setting without `--set`, such as `seed=3` or `seed = 3`."""
    del before
    field, separator, value = words[0].partition("=")
    if not field or not (separator or "".join(words[1:2]).startswith("=")):
        return None
    value = value or _value_in(words[1:])
    return config_lib.hint(field.lstrip("+"), value, _forms(own))  # + of Hydra


def _value(before: list[str], words: list[str], own: flags.FlagValues) -> str | None:
    """Reads the value of the flag before it, such as `--workdir = x` or `--splits a b`."""
    typed = {f"--{flag}": own[flag] for flag in own if not own[flag].boolean}
    last, first = before[-1], before[-2] if before[1:] else ""
    if last.lstrip("-") in own and last not in typed:
        return f"{last} takes no value"
    if first in typed and last.startswith("--"):  # --config --set seed=1
        return f"{first} has no value before {last}; write {first}=VALUE"
    right = None
    if last.endswith("=") and last[:-1] in typed:
        right = last + shlex.quote(words[0])
    elif first in typed and last == "=":
        right = f"{first}={shlex.quote(words[0])}"
    elif first in typed and isinstance(typed[first].default, list) and first != "--set":
        right = f"{first}={shlex.quote(f'{last},{words[0]}')}"
    return f"did you mean {right}?" if right else None


def _thing(before: list[str], words: list[str], own: flags.FlagValues) -> str | None:
    """Reads a word by what it is: a config, a folder, a model."""
    del before
    text = words[0]
    if text.startswith(("–", "—")):
        return f"it begins with a long dash; type two short ones: --{text.lstrip('–—-')}"
    if recipes.find(text).is_file() and "config" in own:
        return f"did you mean --config={shlex.quote(text)}?"
    if text and Path(text).is_dir():
        forms = _forms(own)
        return config_lib.hint("data_dir", text, forms) or config_lib.hint("run", text, forms)
    return config_lib.hint("arch", text, _forms(own)) if text in MODELS else None


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Returns the value of an unknown flag: what follows `=`, or the next words."""
    plain = flag.lstrip("-")
    place = next(i for i, arg in enumerate(argv) if arg.lstrip("-").split("=")[0] == plain)
    if "=" in argv[place]:
        return argv[place].partition("=")[2]
    return _value_in(argv[place + 1 :])


def _value_in(words: Sequence[str]) -> str | None:
    """Returns the value that the next words give: one word, or numbers; `=` may come first."""
    if words and words[0] == "=":
        words = words[1:]
    if len(numbers := _numbers(words)) > 1:  # --mean 0.5 0.5 0.5
        return ",".join(numbers)
    if not words or (words[0].startswith("-") and not numbers):
        return None
    return words[0].removeprefix("=")


def _numbers(words: Sequence[str]) -> list[str]:
    """Returns the numbers that these words begin with."""
    count = next((i for i, w in enumerate(words) if not _NUMBER.fullmatch(w)), len(words))
    return list(words[:count])


def _forms(own: flags.FlagValues) -> dict[str, str]:
    """Returns how each flag of the verb is typed."""
    return {flag: f"--{flag}" if own[flag].boolean else f"--{flag}={{}}" for flag in own}


def _help(own: flags.FlagValues, name: str) -> str:
    fields = ", --help_config the fields that --set takes" if "set" in own else ""
    return f"--help lists the flags of {name}{fields}"

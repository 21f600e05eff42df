"""Values as YAML."""

import math
import re
from typing import Any

_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(value: Any) -> str:
    """Returns YAML that every reader reads alike.

    kubectl reads more words as numbers and booleans than PyYAML quotes (1e3, 0o7, y). So every
    text is quoted, unless it starts with a letter, contains nothing special, and is none of these
    words.
    """
    import yaml  # not needed to list runs, and slow

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            return super().increase_indent(flow, False)

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", data, re.ASCII)
        style = None
        if not plain or data.lower() in _WORDS:
            style = "'" if '"' in data and data.isprintable() else '"'  # whichever reads better
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style)

    def sequence(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
        in_a_line = all(isinstance(item, int) for item in data)  # exit codes
        return dumper.represent_sequence("tag:yaml.org,2002:seq", data, in_a_line)

    Dumper.add_representer(str, text)
    Dumper.add_representer(list, sequence)
    return yaml.dump(
        value,
        Dumper=Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=math.inf,  # folded text is hard to read
    )

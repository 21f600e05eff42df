"""Parses calls of the verbs as `python -m` does, without running them.

    python -m tests.docs_commands < CALLS

reads a JSON list of argument lists, the module first, and prints a JSON list of errors, each a text
or null. Each call has a separate fork, because two verbs have flags of the same name.
"""

import json
import os
import runpy
import sys
import traceback

from absl import app, flags

from trainer import config as config_lib
from trainer.cli.flags import CONFIG, SET
from trainer.preflight.slices import parse_slice
from trainer.registry import MODELS


def parse(module: str, arguments: list[str]) -> None:
    """Does what a verb does with its arguments before it runs, and checks what they name.

    Raises:
        SystemExit: for arguments that the verb refuses.
        UserError: for a config, a setting or a slice that does not exist.
    """
    sys.argv = [module, *arguments]
    names = runpy.run_module(module, run_name="__main__", alter_sys=True)
    config_lib.override(config_lib.load(CONFIG.value), SET.value)
    values = flags.FLAGS.flag_values_dict()
    if module == "trainer.main":
        assert values["strategy"] in names["STRATEGIES"]
    elif module == "trainer.inspect":
        assert {name for name in (values["model"], *values["diff"]) if name} <= set(MODELS)
    elif module == "trainer.preflight":
        parse_slice(values["tpu"])


def error_of(call: list[str]) -> str | None:
    """Returns what a fork that parses the call prints before it fails, or None if it succeeds."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            parse(call[0], call[1:])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        text = file.read()
    return text or "no reason given" if os.waitpid(child, 0)[1] else None


def main() -> None:
    app.run = lambda main, argv=None, *, flags_parser: flags_parser(argv or sys.argv)
    print(json.dumps([error_of(call) for call in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

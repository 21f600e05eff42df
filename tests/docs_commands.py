"""Parses commands of the documentation, without running them.

    python -m tests.docs_commands trainer.main < COMMANDS

reads a JSON list of argument lists and prints a JSON list with the error of each, or null. A
process for each verb, since two of them have flags of the same name.
"""

import contextlib
import importlib
import io
import json
import sys

from absl import app, flags


def parse(module, arguments: list[str]) -> None:
    """Does what the verb does with its arguments before it runs, and checks what they name.

    Raises:
        SystemExit: for arguments that the verb refuses.
        UserError: for a config, a setting or a slice that does not exist.
    """
    from trainer import config as config_lib
    from trainer.cli.flags import CONFIG, SET

    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    sys.argv = [module.__name__, *arguments]
    module.main()  # app.run, see below, only parses
    config_lib.override(config_lib.load(CONFIG.value), SET.value)
    values = flags.FLAGS.flag_values_dict()
    if module.__name__ == "trainer.main":
        assert values["strategy"] in module.STRATEGIES
    if module.__name__ == "trainer.inspect":
        from trainer.registry import MODELS

        assert {name for name in (values["model"], *values["diff"]) if name} <= set(MODELS)
    if module.__name__.startswith("trainer.preflight"):
        from trainer.preflight.slices import parse_slice

        parse_slice(values["tpu"])


def main() -> None:
    name = sys.argv[1]
    module = importlib.import_module(f"{name}.__main__" if name == "trainer.preflight" else name)
    app.run = lambda main, argv=None, flags_parser=None: flags_parser(argv or sys.argv)
    errors = []
    for arguments in json.load(sys.stdin):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                parse(module, arguments)
            errors.append(None)
        except (Exception, SystemExit) as error:
            errors.append(f"{said.getvalue()}{type(error).__name__}: {error}")
    print(json.dumps(errors))


if __name__ == "__main__":
    main()

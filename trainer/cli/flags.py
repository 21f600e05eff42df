"""The flags of every verb with a config. No TensorFlow.

Each verb has a separate `FlagValues`, so it refuses the flags of other verbs, and any two verbs can
be imported into one process.
"""

from collections.abc import Sequence

from absl import flags

from trainer import config as config_lib
from trainer.cli.command import print_and_exit
from trainer.config import Config, show


class ConfigFlags:
    """`--config` and `--set`; `--help_config` and `--print_config`, which print and exit.

    Args:
        own: the verb's flags.

    Attributes:
        path: `--config`.
    """

    def __init__(self, own: flags.FlagValues):
        self.path = flags.DEFINE_string(
            "config",
            "configs/digits_resnet20.py",
            "What to compute: a Python file with get_config().",
            flag_values=own,
        )
        self._settings = flags.DEFINE_multi_string(
            "set",
            [],
            "FIELD=VALUE sets a field of the config, such as optimizer.learning_rate=0.8. "
            "May be repeated.",
            flag_values=own,
        )
        self._help = flags.DEFINE_bool(
            "help_config",
            False,
            f"Print {show.HELP_CONFIG}, and exit.",
            flag_values=own,
        )
        self._print = flags.DEFINE_bool(
            "print_config",
            False,
            "Print the config that results from --config and --set, and exit.",
            flag_values=own,
        )

    def setting(self, field: str) -> str | None:
        """Returns the text that `--set` gives a field, or None."""
        pairs = [assignment.partition("=") for assignment in self._settings.value]
        given = [text.strip() for path, _, text in pairs if path.strip() == field]
        return given[-1] if given else None

    def resolve(self, settings: Sequence[str] = (), default: Config | None = None) -> Config:
        """Returns the config that the flags describe, validated.

        Args:
            settings: further `FIELD=VALUE`, which come after those of `--set`.
            default: replaces the default of `--config`.

        Raises:
            UserError: for a file, field or value that is wrong.
            SystemExit: after it has printed what `--help_config` or `--print_config` ask for.
        """
        if default is None or self.path.present:
            default = config_lib.load(self.path.value)
        config = config_lib.override(default, [*self._settings.value, *settings])
        if self._help.value:
            print_and_exit(show.help_text(config))
        if self._print.value:
            print_and_exit(show.values_text(config))
        return config

"""The ways in which a run fails, and their exit codes."""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42
EXIT_DIVERGED = 43
EXIT_INTERRUPTED = 130  # as shells report an end by Ctrl-C
EXIT_GROUP_BROKEN = 200  # above all signals; launchers restart it


class UserError(Exception):
    """A mistake in the config, the flags, the data or the environment.

    The message is one line that names the thing, its value and what to do. Commands print it
    without a traceback and exit with 2 (200 for a GroupError).
    """


class GroupError(UserError):
    """A worker is missing, lost, or cannot use its port; or the TPU is gone.

    The command is right, and starting the whole group again helps: commands exit with 200.
    """


class DivergedError(Exception):
    """The loss or the gradient is not finite: commands exit with 43."""


class PreemptedError(Exception):
    """A signal asked the run to stop, and everything is saved: commands exit with 42."""

"""The ways in which a run fails, and their exit codes."""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42
EXIT_DIVERGED = 43
EXIT_INTERRUPTED = 130  # as shells report an end by Ctrl-C
EXIT_GROUP_BROKEN = 200  # above all signals; launchers restart it


class RunError(Exception):
    """A reason why a run ends early.

    Attributes:
        exit_code: that of the command.
    """

    exit_code = EXIT_BUG


class UserError(RunError):
    """A mistake in the config, the flags, the data or the environment.

    The message is one line that names the thing, its value and what to do. Commands print it
    without a traceback and exit with 2 (200 for a GroupError).
    """

    exit_code = EXIT_USER_ERROR


class GroupError(UserError):
    """A worker is missing, lost, or cannot use its port; or the TPU is gone.

    The command is right, and starting the whole group again helps: commands exit with 200.
    """

    exit_code = EXIT_GROUP_BROKEN


class DivergedError(RunError):
    """The loss or the gradient is not finite: commands exit with 43."""

    exit_code = EXIT_DIVERGED


class PreemptedError(RunError):
    """A signal asked the run to stop, and everything is saved: commands exit with 42."""

    exit_code = EXIT_PREEMPTED


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code of a command that an error ends."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return error.exit_code if isinstance(error, RunError) else EXIT_BUG

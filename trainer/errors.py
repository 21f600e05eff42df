"""How a run ends other than well, and the exit code that says so."""

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42
EXIT_DIVERGED = 43
EXIT_INTERRUPTED = 130  # as a shell reports the end by Ctrl-C
EXIT_GROUP_BROKEN = 200  # beyond all signals, where launchers look for what to start again


class UserError(Exception):
    """A mistake in the config, the flags, the data or the environment.

    The message is one line that names the thing, its value and what to do.
    `main` prints it without a traceback and exits 2 (200 for a GroupError).
    """


class GroupError(UserError):
    """The group of workers is not whole: one is missing, lost, or cannot have its port; or the TPU
    is gone.

    What the user asked for is right, and starting the whole group again helps: `main` exits 200.
    """


class DivergedError(Exception):
    """The loss or the gradient is not finite: `main` exits 43."""


class PreemptedError(Exception):
    """A signal asked the run to stop; everything is saved: `main` exits 42."""

"""A user's mistake, and what must not be shown of it."""

import re

EXIT_DONE = 0
EXIT_FAILED = 1  # of a run whose own exit code nobody saw
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42  # as the trainer's: all is saved, the same command goes on
EXIT_CANCELLED = 130  # as a shell reports the end by Ctrl-C

_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|passwd|password|api_?key|access_?key|private_?key|credentials?)s?($|[_.-])",
    re.IGNORECASE,
)
# Access tokens of Google, GitHub, GitLab, Hugging Face, AWS, Slack; a private key; user:password@.
_SECRET_VALUE = re.compile(
    r"ya29\.[\w.-]+|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{10,}|hf_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abpr]-[\w-]+|Bearer [\w.~+/=-]+|-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


class LaunchError(Exception):
    """A mistake in the command, the environment or on the other side.

    The message is one line that names the thing, its value and what to do; `python -m launch`
    prints it without a traceback and exits 2.
    """


def refuse_secret(name: str, value: str, where: str) -> None:
    """Whatever is in a spec is written to files and sent to servers that many can read.

    Raises:
        LaunchError: where the name or the value looks like a secret; it does not show the value.
    """
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        raise LaunchError(
            f"{where}: looks like a secret, and what launches a run can be read by others; let "
            f"the run read it from a file that only its account can read"
        )


def redacted(text: str) -> str:
    """The text without whatever looks like a secret in it: for all that is printed or logged."""
    return _SECRET_VALUE.sub("[secret]", text)

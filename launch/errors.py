"""A user's mistake, and what must not be shown of it."""

import re

EXIT_DONE = 0
EXIT_FAILED = 1  # of a run whose own exit code nobody saw
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42  # as the trainer's: all is saved, the same command goes on
EXIT_CANCELLED = 130  # as a shell reports the end by Ctrl-C

_SECRET_NAME = re.compile(
    r"(^|[_.\s-])(token|secrets?|passwd|\w*passwords?|pwd|api_?keys?|access_?keys?|private_?keys?"
    r"|credentials?)($|[_.-])",
    re.IGNORECASE,
)
# Access tokens of Google, GitHub, GitLab, Hugging Face, AWS, Slack and others; a private key; what
# stands before the @ of an address.
_SECRET_VALUE = re.compile(
    r"ya29\.[\w.-]+|AIza[\w-]{30,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{10,}|hf_\w{20,}"
    r"|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]+|(Bearer|Authorization: Basic) [\w.~+/=-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]*:[^/\s]+(?=@)"
)


class LaunchError(Exception):
    """A mistake in the command, the environment or on the other side.

    The message is one line that names the thing, its value and what to do; `python -m launch`
    prints it without a traceback and exits 2.
    """


def refuse_secret(text: str, where: str) -> None:
    """Whatever is in a spec is written to files and sent to servers that many can read.

    Args:
        text: NAME=VALUE, --NAME=VALUE, --set=NAME=VALUE, or a word alone.

    Raises:
        LaunchError: where a name or the value looks like a secret; it does not show the value.
    """
    *names, last = text.split("=")
    if not names and last.startswith("-"):  # its value is the next word
        names = [last]
    if any(map(_SECRET_NAME.search, names)) or _SECRET_VALUE.search(text):
        raise LaunchError(
            f"{where}: looks like a secret, and what launches a run can be read by others; let "
            f"the run read it from a file that only its account can read"
        )


def redacted(text: str) -> str:
    """The text without whatever looks like a secret in it: for all that is printed or logged."""
    return _SECRET_VALUE.sub("[secret]", text)

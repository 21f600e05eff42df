"""User errors, exit codes, and hiding of secrets."""

import re

EXIT_DONE = 0
EXIT_FAILED = 1  # for a run whose own exit code is unknown
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 42  # as the trainer's: everything is saved, the same command resumes
EXIT_CANCELLED = 130  # as a shell reports a process ended by Ctrl-C

_SECRET_NAME = re.compile(
    r"(^|[_.\s-])(token|secrets?|passwd|\w*passwords?|pwd|api_?keys?|access_?keys?|private_?keys?"
    r"|credentials?)($|[_.-])",
    re.IGNORECASE,
)
# Access tokens of Google, GitHub, GitLab, Hugging Face, AWS, Slack and others; a private key; the
# user and password in an address.
_SECRET_VALUE = re.compile(
    r"ya29\.[\w.-]+|AIza[\w-]{30,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{10,}|hf_\w{20,}"
    r"|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]+|(Bearer|Authorization: Basic) [\w.~+/=-]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]*:[^/\s]+(?=@)"
)


class LaunchError(Exception):
    """A mistake in the command or the environment, or a refusal by a back end.

    The message is one line that names the thing, its value and what to do; `python -m launch`
    prints it without a traceback and exits 2.
    """


def refuse_secret(text: str, where: str) -> None:
    """Refuses text that looks like a secret: a spec is stored and sent where others can read it.

    Args:
        text: NAME=VALUE, --NAME=VALUE, --set=NAME=VALUE, or a word alone.

    Raises:
        LaunchError: if a name or the value looks like a secret. The message hides the value.
    """
    *names, last = text.split("=")
    if not names and last.startswith("-"):  # its value is the next word
        names = [last]
    if any(map(_SECRET_NAME.search, names)) or _SECRET_VALUE.search(text):
        raise LaunchError(
            f"{where}: looks like a secret, and others can read how a run is launched; let the run "
            f"read it from a file that only its account can read"
        )


def redacted(text: str) -> str:
    """Returns the text with likely secrets replaced: for everything that is printed or logged."""
    return _SECRET_VALUE.sub("[secret]", text)

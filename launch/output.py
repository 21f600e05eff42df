"""Printing that does not end a run."""

import os
import sys


def show(text: str) -> None:
    """Prints a line. Where nobody reads any more, as behind `| head` or in a terminal that is
    closed, what is launched goes on without."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

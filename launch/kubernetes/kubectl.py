"""kubectl: a call and its answer, and logs as they come."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from launch.errors import LaunchError

CREATE = ("create", "--filename=-")
CALL_S = 60.0  # what a call may take
_RESOURCE = "jobsets.jobset.x-k8s.io"


class KubectlError(LaunchError):
    """There is no kubectl; or it, or the cluster behind it, said no, or nothing."""


@dataclasses.dataclass(frozen=True)
class Kubectl:
    """Calls for one namespace of one cluster. Each raises KubectlError where it fails.

    Attributes:
        context: the cluster, as kubectl's config names it; "" for its current one.
    """

    context: str
    namespace: str

    def command(self, *args: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *context, f"--namespace={self.namespace}", *args]

    def create(self, manifest: str) -> None:
        self._run(*CREATE, stdin=manifest)

    def delete(self, jobset: str) -> None:
        """Asks for it; in the foreground: the JobSet is there until its pods have ended."""
        flags = ("--ignore-not-found", "--cascade=foreground", "--wait=false")
        self._run("delete", _RESOURCE, jobset, *flags)

    def jobset(self, name: str) -> dict[str, Any] | None:
        """The JobSet of this name, whosever it is."""
        text = self._run("get", _RESOURCE, name, "--ignore-not-found", "--output=json")
        return _parsed(text) if text.strip() else None

    def pods(self, jobset: str) -> list[dict[str, Any]]:
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={jobset}"
        return _parsed(self._run("get", "pods", selector, "--output=json")).get("items", [])

    def _run(self, *args: str, stdin: str = "") -> str:
        command = self.command(f"--request-timeout={CALL_S / 2:.0f}s", *args)
        return _call(f"kubectl {args[0]}", command, stdin)


def current_context() -> str:
    """The cluster that kubectl asks where none is named.

    Raises:
        KubectlError: where it cannot say.
    """
    return _call("kubectl config", ["kubectl", "config", "current-context"]).strip()


class LogStream:
    """What a command prints, read without waiting for it.

    Attributes:
        descriptor: can be read where there is more, or the end.
    """

    def __init__(self, command: Sequence[str], prefix: str):
        self._command, self._prefix = command, prefix
        self._rest = b""
        self.has_ended = False

    def __enter__(self) -> "LogStream":
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.descriptor = self._process.stdout.fileno()
        os.set_blocking(self.descriptor, False)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.__exit__(None, None, None)

    def lines(self) -> Iterator[str]:
        """The whole lines since the last call, each behind the prefix."""
        try:
            data = os.read(self.descriptor, 2**16)
        except BlockingIOError:
            return
        self.has_ended = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        if self.has_ended and self._rest:
            whole = [*whole, self._rest]
        for line in whole:
            yield self._prefix + line.decode(errors="backslashreplace").rstrip("\r")


def short(text: str) -> str:
    """One line of what the cluster said."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _call(what: str, command: Sequence[str], stdin: str = "") -> str:
    """What it printed.

    Raises:
        KubectlError: where it failed, in one line.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            timeout=CALL_S,
            check=False,
            start_new_session=True,  # Ctrl-C is for the launcher
        )
    except subprocess.TimeoutExpired:
        raise KubectlError(
            f"{what}: no answer within {CALL_S:.0f} s; look at the cluster, and at the network"
        ) from None
    except OSError as error:
        raise KubectlError(
            f"kubectl: cannot be started ({error.strerror}); install it, and put it on PATH"
        ) from None
    if done.returncode:
        said = _said(done.stderr) or f"exit code {done.returncode}"
        raise KubectlError(f"{what}: {said}{_hint(said)}")
    return done.stdout.decode(errors="replace")


def _said(stderr: bytes) -> str:
    """An error without what kubectl logs before it: that has the time in it, and says no more."""
    lines = stderr.decode(errors="replace").splitlines()
    return short(" ".join(line for line in lines if not re.match(r"[IWEF]\d{4} ", line)))


def _hint(said: str) -> str:
    if "resource type" in said or "no matches for kind" in said:
        return "; install the JobSet controller in this cluster (BUILD.md)"
    return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise KubectlError(f"kubectl get: no JSON: {short(text)}")
    return value

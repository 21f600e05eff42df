"""kubectl: calls and their answers, and logs as they arrive."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from launch.errors import LaunchError

CREATE = ("create", "--filename=-")
CALL_S = 60.0  # seconds for a call
_RESOURCE = "jobsets.jobset.x-k8s.io"


class KubectlError(LaunchError):
    """kubectl is missing; or it, or the cluster, refused or did not answer."""


@dataclasses.dataclass(frozen=True)
class Kubectl:
    """Calls for one namespace of one cluster. Each raises KubectlError if it fails.

    Attributes:
        context: kubectl's name for the cluster; "" for the current one.
    """

    context: str
    namespace: str

    def command(self, *args: str) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *context, f"--namespace={self.namespace}", *args]

    def create(self, manifest: str) -> None:
        self._run(*CREATE, stdin=manifest)

    def delete(self, jobset: str) -> None:
        """Asks for the deletion in the foreground: the JobSet exists until its pods have ended."""
        flags = ("--ignore-not-found", "--cascade=foreground", "--wait=false")
        self._run("delete", _RESOURCE, jobset, *flags)

    def jobset(self, name: str) -> dict[str, Any] | None:
        """Returns the JobSet of this name, even if it is somebody else's."""
        text = self._run("get", _RESOURCE, name, "--ignore-not-found", "--output=json")
        return _parsed(text) if text.strip() else None

    def pods(self, jobset: str) -> list[dict[str, Any]]:
        selector = f"--selector=jobset.sigs.k8s.io/jobset-name={jobset}"
        return _parsed(self._run("get", "pods", selector, "--output=json")).get("items", [])

    def _run(self, *args: str, stdin: str = "") -> str:
        command = self.command(f"--request-timeout={CALL_S / 2:.0f}s", *args)
        return _call(f"kubectl {args[0]}", command, stdin)


def current_context() -> str:
    """Returns kubectl's current context.

    Raises:
        KubectlError: if there is none, or no kubectl.
    """
    return _call("kubectl config", ["kubectl", "config", "current-context"]).strip()


class LogStream:
    """The output of a command, read without blocking.

    Attributes:
        descriptor: readable once there is more output, or at its end.
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
        """Yields the complete lines since the last call, each after the prefix."""
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
    """Returns the text as one line of at most 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _call(what: str, command: Sequence[str], stdin: str = "") -> str:
    """Runs a command and returns its output.

    Raises:
        KubectlError: if it fails; the message is one line.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            timeout=CALL_S,
            check=False,
            start_new_session=True,  # Ctrl-C goes to the launcher alone
        )
    except subprocess.TimeoutExpired:
        raise KubectlError(
            f"{what}: no answer within {CALL_S:.0f} s; check the cluster and the network"
        ) from None
    except OSError as error:
        raise KubectlError(
            f"kubectl: cannot be started ({error.strerror}); install it and put it on PATH"
        ) from None
    if done.returncode:
        said = _said(done.stderr) or f"exit code {done.returncode}"
        raise KubectlError(f"{what}: {said}{_hint(said)}")
    return done.stdout.decode(errors="replace")


def _said(stderr: bytes) -> str:
    """Returns kubectl's error without its log lines, which add only timestamps."""
    lines = stderr.decode(errors="replace").splitlines()
    return short(" ".join(line for line in lines if not re.match(r"[IWEF]\d{4} ", line)))


def _hint(said: str) -> str:
    if "resource type" in said or "no matches for kind" in said:
        return "; install the JobSet controller in this cluster (docs/launch.md)"
    return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise KubectlError(f"kubectl get: not JSON: {short(text)}")
    return value

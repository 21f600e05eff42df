"""Requests to Google's APIs: credentials, retries, one-line errors.

`requests` and google-auth are imported when they are first used. A loopback address, as in tests,
needs no credentials.
"""

import contextlib
import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from launch.errors import LaunchError
from launch.signals import Signals

TRIES = 6  # about half a minute of pauses in all, unless the server asks for more
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 32.0
_LONGEST_RETRY_AFTER_S = 300.0
_TIMEOUT_S = (10.0, 60.0)  # to connect; between two bytes of an answer
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class ApiError(LaunchError):
    """The server refuses, and a retry would not help.

    Attributes:
        status: the HTTP status.
        text: the server's explanation, one line.
    """

    def __init__(self, message: str, status: int, text: str):
        super().__init__(message)
        self.status, self.text = status, text


class Unavailable(LaunchError):
    """No usable answer in all tries; a later one may succeed."""


class Interrupted(Unavailable):
    """A signal arrived during the wait before a retry."""


def wait(signals: Signals, seconds: float) -> None:
    """Waits; raises Interrupted if a signal arrives meanwhile. Earlier signals do not count."""
    before = len(signals.received)
    until = signals.now() + seconds
    while (left := until - signals.now()) > 0:
        signals.wait(left)
        if len(signals.received) > before:
            raise Interrupted("stopped by a signal; the same command resumes")


class Api:
    """One of Google's services.

    Args:
        base: its address, without a trailing slash.
        hint: advice for an error of missing permission.
        tries: attempts per request before the service counts as unavailable.
    """

    def __init__(self, base: str, signals: Signals, hint: str, tries: int = TRIES):
        self._base, self._signals, self._hint, self._tries = base, signals, hint, tries
        self._session: Any = None

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> Any:
        """Sends a request and returns the `requests.Response`.

        Its status is below 300, or one of `allowed`.

        The request may arrive twice, if only the first answer is lost.

        Raises:
            ApiError: if the server refuses.
            Unavailable: if no try got a usable answer.
            Interrupted: if a signal arrives.
            LaunchError: if there are no credentials.
        """
        import requests

        session = self._open()
        last = ""
        for attempt in range(self._tries):
            retry_after = 0.0
            try:
                answer = session.request(
                    method,
                    self._base + path,
                    params=params,
                    json=body,
                    data=data,
                    headers=headers,
                    timeout=_TIMEOUT_S,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                last = type(error).__name__  # its text contains the whole address
            except Exception as error:
                last = _of_credentials(error)
            else:
                if answer.status_code < 300 or answer.status_code in allowed:
                    return answer
                said, details = _read_error(answer)
                if not _is_passing(answer.status_code, said, details):
                    raise self._refused(method, path, answer.status_code, said, details)
                last = f"{answer.status_code} {said}"
                retry_after = _retry_after(answer)
            if attempt + 1 < self._tries:
                pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1)
                wait(self._signals, max(pause, retry_after))
        host = urlsplit(self._base).netloc
        raise Unavailable(f"{host}: no answer in {self._tries} tries ({last}); try again later")

    def json(
        self, method: str, path: str, params: Mapping[str, str] | None = None, body: Any = None
    ) -> dict[str, Any] | None:
        """Sends a request and returns the JSON of the answer; None if the object does not exist.

        Raises:
            Unavailable: also if the answer is not JSON, for example a proxy's error page.
        """
        answer = self.request(method, path, params, body, allowed=(404,))
        if answer.status_code == 404:
            return None
        with contextlib.suppress(ValueError):
            found = answer.json()
            if isinstance(found, dict):
                return found
        host = urlsplit(self._base).netloc
        raise Unavailable(
            f"{host}: the answer is not JSON: {one_line(answer.text, 80)!r}; try again later"
        )

    def _open(self) -> Any:
        if self._session is None:
            self._session = _anonymous() if is_loopback(self._base) else _authorized()
        return self._session

    def _refused(self, method: str, path: str, status: int, said: str, details: str) -> ApiError:
        host, what = urlsplit(self._base).netloc, f"{method} {path.partition('?')[0]}"
        message = f"{host} refuses {what} ({status}: {said})"
        if status in (401, 403):
            message += f"; {self._hint}"
            if "SERVICE_DISABLED" in details or "has not been used in project" in said:
                message += f"; enable the API: gcloud services enable {host}"
        return ApiError(message, status, said)


def is_loopback(address: str) -> bool:
    """Returns whether an address is on this machine."""
    return urlsplit(address).hostname in ("127.0.0.1", "::1", "localhost")


def _anonymous() -> Any:
    import requests

    session = requests.Session()
    session.trust_env = False  # a proxy cannot reach this machine's loopback
    return session


def _authorized() -> Any:
    import google.auth
    import google.auth.exceptions
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.DefaultCredentialsError:
        raise LaunchError(
            "no credentials for Google Cloud; run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    return AuthorizedSession(credentials)


def _of_credentials(error: Exception) -> str:
    """Returns the name of a lost connection while google-auth fetches a token.

    Raises:
        ApiError: if the credentials are not accepted.
    """
    import google.auth.exceptions

    if isinstance(error, google.auth.exceptions.TransportError):
        return type(error).__name__
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        said = str(error.args[0] if error.args else type(error).__name__)
        raise ApiError(
            f"the credentials for Google Cloud are not accepted ({one_line(said)}); run "
            f"`gcloud auth application-default login`",
            401,
            one_line(said),
        ) from None
    raise error


def _read_error(answer: Any) -> tuple[str, str]:
    """Returns the server's message, and its details as text to search."""
    with contextlib.suppress(ValueError, AttributeError):
        error = answer.json().get("error", {})
        if isinstance(error, dict) and error.get("message"):
            details = json.dumps([error.get("details"), error.get("errors")])
            return one_line(error["message"]), details
    return one_line(answer.text) or str(answer.reason), ""


def _is_passing(status: int, said: str, details: str) -> bool:
    """Returns whether an error may pass. 429 for an exhausted quota of chips does not."""
    if status == 429:
        is_rate = "RATE_LIMIT_EXCEEDED" in details or "RetryInfo" in details
        is_quota = "google.rpc.QuotaFailure" in details or "quota limit" in said.lower()
        return is_rate or not is_quota
    return status == 408 or status >= 500


def _retry_after(answer: Any) -> float:
    """Returns the seconds of the Retry-After header (seconds or a date); at most five minutes."""
    text = answer.headers.get("Retry-After", "").strip()
    seconds = 0.0
    if text.isdigit():
        seconds = float(text)
    elif text:
        with contextlib.suppress(ValueError):
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def one_line(text: str, most: int = 400) -> str:
    """Returns a text as one line of at most this many characters."""
    return " ".join(text.split())[:most]

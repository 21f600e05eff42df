"""Requests to Google's APIs: credentials, retries, errors of one line. Imports nothing heavy.

Where the address is one of loopback, as in tests, nothing is asked for credentials.
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

TRIES = 6  # half a minute of pauses in all, without what the other side asks for
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 32.0
_LONGEST_RETRY_AFTER_S = 300.0
_TIMEOUT_S = (10.0, 60.0)  # to connect; between two bytes of the answer
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class ApiError(LaunchError):
    """The other side refuses, and will again.

    Attributes:
        status: HTTP's.
        text: what it said, one line.
    """

    def __init__(self, message: str, status: int, text: str):
        super().__init__(message)
        self.status, self.text = status, text


class Unavailable(LaunchError):
    """No answer, or none that can be used, for as long as was tried: it may do later."""


class Interrupted(Unavailable):
    """A signal came while it waited to try again."""


def wait(signals: Signals, seconds: float) -> None:
    """Raises Interrupted where a signal comes meanwhile; earlier ones do not count."""
    before = len(signals.received)
    until = signals.now() + seconds
    while (left := until - signals.now()) > 0:
        signals.wait(left)
        if len(signals.received) > before:
            raise Interrupted("stopped by a signal; the same command goes on from there")


class Api:
    """One of Google's services.

    Args:
        base: its address, without a slash at the end.
        hint: what to do where it refuses for want of permission.
        tries: for each request, until it counts as unavailable.
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
        """The answer, as of the library `requests`; its status is below 300, or one of `allowed`.

        A request may arrive twice, where only the first answer was lost.

        Raises:
            ApiError, Unavailable, Interrupted.
            LaunchError: where there are no credentials.
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
                last = type(error).__name__  # its text has the whole address in it
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
        """What the answer holds; None where there is no such thing.

        Raises:
            Unavailable: also where the answer is none of this API, as a proxy's page.
        """
        answer = self.request(method, path, params, body, allowed=(404,))
        if answer.status_code == 404:
            return None
        with contextlib.suppress(ValueError):
            found = answer.json()
            if isinstance(found, dict):
                return found
        host = urlsplit(self._base).netloc
        raise Unavailable(f"{host}: answers {one_line(answer.text, 80)!r}, which is no JSON")

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
    return urlsplit(address).hostname in ("127.0.0.1", "::1", "localhost")


def _anonymous() -> Any:
    import requests

    session = requests.Session()
    session.trust_env = False  # a proxy knows nothing of this machine's loopback
    return session


def _authorized() -> Any:
    import google.auth
    import google.auth.exceptions
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.DefaultCredentialsError:
        raise LaunchError(
            "there are no credentials for Google Cloud; `gcloud auth application-default login`, "
            "or set GOOGLE_APPLICATION_CREDENTIALS"
        ) from None
    return AuthorizedSession(credentials)


def _of_credentials(error: Exception) -> str:
    """What google-auth raises while it fetches a token, of which the lost connection may pass."""
    import google.auth.exceptions

    if isinstance(error, google.auth.exceptions.TransportError):
        return type(error).__name__
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        said = str(error.args[0] if error.args else type(error).__name__)
        raise ApiError(
            f"the credentials for Google Cloud are not accepted ({one_line(said)}); `gcloud auth "
            f"application-default login`",
            401,
            one_line(said),
        ) from None
    raise error


def _read_error(answer: Any) -> tuple[str, str]:
    """What the other side says, and its details as text to search in."""
    with contextlib.suppress(ValueError, AttributeError):
        error = answer.json().get("error", {})
        if isinstance(error, dict) and error.get("message"):
            details = json.dumps([error.get("details"), error.get("errors")])
            return one_line(error["message"]), details
    return one_line(answer.text) or str(answer.reason), ""


def _is_passing(status: int, said: str, details: str) -> bool:
    """429 is also the answer where a quota of chips is used up, and that does not pass."""
    if status == 429:
        is_rate = "RATE_LIMIT_EXCEEDED" in details or "RetryInfo" in details
        is_quota = "google.rpc.QuotaFailure" in details or "quota limit" in said.lower()
        return is_rate or not is_quota
    return status == 408 or status >= 500


def _retry_after(answer: Any) -> float:
    """Seconds, of a header that has seconds or a date; at most five minutes."""
    text = answer.headers.get("Retry-After", "").strip()
    seconds = 0.0
    if text.isdigit():
        seconds = float(text)
    elif text:
        with contextlib.suppress(ValueError):
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def one_line(text: str, most: int = 400) -> str:
    return " ".join(text.split())[:most]

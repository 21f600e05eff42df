"""Objects of a Cloud Storage bucket, through its JSON API.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from launch.errors import LaunchError
from launch.signals import Signals
from launch.tpu.rest import TRIES, Api


def base_url() -> str:
    return os.environ.get("STORAGE_API_URL", "https://storage.googleapis.com").rstrip("/")


def split(address: str) -> tuple[str, str]:
    """Returns the bucket and the name of `gs://BUCKET/NAME`."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    return bucket, name


def encode(name: str) -> str:
    """Returns an object's name for a path or a query; slashes are escaped, too."""
    return quote(name, safe="")


def upload_path(bucket: str, name: str) -> str:
    """Returns the path of an upload that fails with 412 if the object exists."""
    return (
        f"/upload/storage/v1/b/{bucket}/o?uploadType=media&ifGenerationMatch=0&name={encode(name)}"
    )


class Bucket:
    """One bucket. Names are those of objects, without a leading slash."""

    def __init__(self, bucket: str, signals: Signals, tries: int = TRIES):
        hint = f"give this account roles/storage.objectUser on gs://{bucket}"
        self._api = Api(base_url(), signals, hint, tries)
        self._bucket = bucket
        self._objects = f"/storage/v1/b/{bucket}/o"

    def check(self) -> None:
        """Raises LaunchError if the bucket does not exist."""
        if self._api.json("GET", self._objects, {"maxResults": "1"}) is None:
            raise LaunchError(
                f"gs://{self._bucket}: no such bucket; create it (gcloud storage buckets create), "
                f"or choose another with --bucket"
            )

    def read(self, name: str, start: int = 0) -> bytes | None:
        """Returns the object's content from this byte on; None if it does not exist."""
        answer = self._api.request(
            "GET",
            f"{self._objects}/{encode(name)}",
            {"alt": "media"},
            # Without compression: the range counts the bytes of the object itself.
            headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"},
            allowed=(404, 416),
        )
        if answer.status_code == 404:
            return None
        if answer.status_code == 416:  # nothing after this byte
            return b""
        return answer.content if answer.status_code == 206 else answer.content[start:]

    def stat(self, name: str) -> dict[str, Any] | None:
        return self._api.json("GET", f"{self._objects}/{encode(name)}")

    def write_new(self, name: str, data: bytes) -> None:
        """Writes an object, unless it exists."""
        headers = {"Content-Type": "application/octet-stream"}
        path = upload_path(self._bucket, name)
        self._api.request("POST", path, data=data, headers=headers, allowed=(412,))

    def delete(self, name: str) -> None:
        self._api.request("DELETE", f"{self._objects}/{encode(name)}", allowed=(404,))


class Tail:
    """The lines of a growing object."""

    def __init__(self, bucket: Bucket, name: str):
        self._bucket, self._name = bucket, name
        self._position = 0
        self._rest = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yields the complete lines since the last call; bytes that are not text become escapes.

        Args:
            last: also yield an incomplete last line: nothing more will arrive.
        """
        data = self._bucket.read(self._name, self._position) or b""
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            yield line.decode(errors="backslashreplace").rstrip("\r")

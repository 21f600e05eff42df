"""Cloud TPU's REST API v2: queued resources, nodes and operations, as documented on 2025-04-10.

https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources
"""

import os
from collections.abc import Iterator
from typing import Any

from launch.errors import LaunchError
from launch.signals import Signals
from launch.tpu.rest import TRIES, Api


def base_url() -> str:
    return os.environ.get("TPU_API_URL", "https://tpu.googleapis.com").rstrip("/")


def hosts(accelerator: str) -> int:
    """Returns how many VMs a type of accelerator has; 0 if the type is unknown.

    v2, v3, v4 and v5p are named by their number of cores, 8 per VM. v5litepod and v6e are named by
    their number of chips: up to 8 are one VM, larger slices have 4 per VM.
    https://cloud.google.com/tpu/docs/supported-tpu-configurations
    """
    kind, _, number = accelerator.partition("-")
    size = int(number) if number.isascii() and number.isdigit() else 0
    if kind in ("v2", "v3", "v4", "v5p") and size:
        return max(1, size // 8)
    if kind in ("v5litepod", "v6e") and size:
        return 1 if size <= 8 else size // 4
    return 0


class TpuApi:
    """The TPUs in one zone of one project."""

    def __init__(self, project: str, zone: str, signals: Signals, tries: int = TRIES):
        hint = f"give your account roles/tpu.admin in project {project}, and "
        hint += "roles/iam.serviceAccountUser on the VM's service account"
        self._api = Api(base_url(), signals, hint, tries)
        self._parent = parent(project, zone)

    def create(self, name: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Asks for a queued resource and returns the operation.

        Raises:
            ApiError: with status 409 if the name is taken.
        """
        params = {"queuedResourceId": name, "requestId": request_id}
        path = f"{self._parent}/queuedResources"
        created = self._api.json("POST", path, params, body)
        if created is None:
            raise LaunchError(f"{path}: no such project or zone; fix --project or --zone")
        return created

    def queued_resource(self, name: str) -> dict[str, Any] | None:
        return self._api.json("GET", f"{self._parent}/queuedResources/{name}")

    def node(self, name: str) -> dict[str, Any] | None:
        return self._api.json("GET", f"{self._parent}/nodes/{name}")

    def operation(self, name: str) -> dict[str, Any] | None:
        """Returns an operation by its full name, projects/…/operations/…"""
        return self._api.json("GET", f"/v2/{name}")

    def queued_resources(self) -> Iterator[dict[str, Any]]:
        return self._list("queuedResources")

    def nodes(self) -> Iterator[dict[str, Any]]:
        return self._list("nodes")

    def delete(self, full_name: str) -> None:
        """Asks to delete a queued resource with its nodes, or a node; it need not exist.

        Args:
            full_name: its `name`, projects/…
        """
        params = {"force": "true"} if "/queuedResources/" in full_name else None
        self._api.request("DELETE", f"/v2/{full_name}", params, allowed=(404,))

    def _list(self, kind: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            params = {"pageSize": "100"} | ({"pageToken": token} if token else {})
            page = self._api.json("GET", f"{self._parent}/{kind}", params) or {}
            yield from page.get(kind, [])
            if not (token := page.get("nextPageToken", "")):
                return


def parent(project: str, zone: str) -> str:
    return f"/v2/projects/{project}/locations/{zone}"

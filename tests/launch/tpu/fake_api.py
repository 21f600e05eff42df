"""A stateful stand-in for Google's servers on loopback, written without access to them.

It imitates what launch/ and its start-up script use, according to the documentation:
- Cloud TPU API v2: queued resources, nodes, operations
  (cloud.google.com/tpu/docs/reference/rest/v2), the discovery document of revision 20250410;
- Cloud Storage's JSON API: objects (cloud.google.com/storage/docs/json_api/v1), kept as files, so
  that a link to the folder is a mounted bucket;
- Cloud TPU API v1: nodes.get, and the discovery document that leads there;
- the metadata server of a VM (cloud.google.com/compute/docs/metadata).

A queued resource follows a list of steps, one per look at it (see `_step`), so that no test depends
on time. Errors are a list of faults (see `Fault`).
"""

import contextlib
import dataclasses
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "token-of-the-vm"
DEFAULT_STEPS = ("ACTIVE", "done")
_DELETING_LOOKS = 2  # a deleted object is gone after this many looks


@dataclasses.dataclass
class Fault:
    """An error for requests whose METHOD PATH?QUERY matches a pattern.

    Attributes:
        status: the status to answer with; 0: close the connection without an answer.
        arrives: whether the request has its effect nevertheless.
        times: the number of requests that fail; -1: all.
        skip: the number of requests that pass before.
    """

    pattern: str
    status: int = 0
    message: str = "as the test has it"
    reason: str = ""
    details: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    arrives: bool = False
    times: int = 1
    skip: int = 0


class ApiError(Exception):
    def __init__(self, status: int, message: str, details: Any = ()):
        super().__init__(message)
        self.status, self.details = status, list(details)


class FakeCloud:
    """Attributes:
    bucket: the only bucket; its objects are the files in the folder `objects`.
    plans: the steps of each queued resource, in the order in which they are created.
    requests: all requests so far, as METHOD PATH?QUERY.
    overlaps: queued resources that were created while another one of the run existed.
    on_active: called with the node of a queued resource once it is ACTIVE.
    """

    def __init__(self, folder: Path, bucket: str):
        self.bucket, self.objects = bucket, folder
        folder.mkdir()
        self.queued: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.plans: list[tuple[str, ...]] = []
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self.overlaps: list[str] = []
        self.created: list[str] = []
        self.on_active: Callable[[dict[str, Any]], None] = lambda node: None
        self.worker_number = "0"
        self.hangs = threading.Event()  # set: API v1 does not answer
        self._closing = threading.Event()
        self._by_request: dict[str, str] = {}
        self._lock = threading.RLock()
        cloud = self

        class Handler(_Handler):
            fake = cloud

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    # Changes by tests.

    def object(self, name: str) -> Path:
        path = self.objects / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def take_name(self, name: str, with_label: str = "of-somebody-else") -> None:
        """Adds a queued resource of somebody else."""
        parent = "projects/p/locations/z"
        node = {"name": f"{parent}/nodes/{name}", "labels": {"trainer-run": with_label}}
        spec = {"parent": parent, "nodeId": name, "node": node}
        self.queued[name] = {
            "name": f"{parent}/queuedResources/{name}",
            "state": {"state": "ACTIVE"},
            "tpu": {"nodeSpec": [spec]},
            "_steps": [],
        }

    # Queued resources.

    def create(self, parent: str, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        name, request = query["queuedResourceId"], query["requestId"]
        if self._by_request.get(request) in self.queued:
            return {"name": f"{parent}/operations/{self._by_request[request]}"}
        (spec,) = body["tpu"]["nodeSpec"]
        assert spec["parent"] == parent
        assert set(body) <= {"tpu", "spot", "reservationName", "queueingPolicy"}
        if name in self.queued or spec["nodeId"] in self.nodes:
            raise ApiError(409, f"Resource '{parent}/queuedResources/{name}' already exists")
        run = spec["node"]["labels"]["trainer-run"]
        if any(_run_of(one) == run for one in self.queued.values()):
            self.overlaps.append(name)
        steps = list(self.plans.pop(0) if self.plans else DEFAULT_STEPS)
        self.created.append(name)
        self._by_request[request] = name
        operation = f"{parent}/operations/{name}"
        self.operations[operation] = {"name": operation, "done": False, "futureField": {"a": 1}}
        if steps[0].startswith("refused:"):
            error = {"code": 8, "message": steps[0].partition(":")[2]}
            self.operations[operation] |= {"done": True, "error": error}
            return {"name": operation, "done": False}
        full = f"{parent}/queuedResources/{name}"
        state = {"state": "CREATING", "creatingData": {}}
        self.queued[name] = body | {"name": full, "state": state, "_steps": steps, "futureField": 7}
        return self.operations[operation]

    def look(self, name: str, listed: bool = False) -> dict[str, Any] | None:
        one = self.queued.get(name)
        if one is None:
            return None
        if one["state"]["state"] == "DELETING":
            one["_left"] -= 1
            if one["_left"] <= 0:
                self._vanish(name)
                return None
        elif one["_steps"] and not listed:
            self._step(name, one["_steps"].pop(0))
        return self.queued.get(name)

    def _step(self, name: str, step: str) -> None:
        """Does a step: a state of the queued resource, `node:STATE`, `object:NAME=TEXT`, `done`,
        `failed:CODE`, `vanish` (it is gone) or `node-vanish` (its node is gone)."""
        one = self.queued[name]
        self.operations[f"{one['tpu']['nodeSpec'][0]['parent']}/operations/{name}"]["done"] = True
        kind, _, value = step.partition(":")
        node_id = one["tpu"]["nodeSpec"][0]["nodeId"]
        if kind == "node":
            self.nodes[node_id]["state"] = value
        elif kind == "object":
            object_name, _, text = value.partition("=")
            self.object(object_name).write_text(text)
        elif kind in ("done", "failed"):
            self._write_end(one, kind, value)
        elif kind == "vanish":
            self._vanish(name)
        elif kind == "node-vanish":
            del self.nodes[node_id]
        else:
            one["state"] = {"state": kind, "stateInitiator": "SERVICE"}
            if kind == "FAILED":
                one["state"]["failedData"] = {"error": {"code": 8, "message": value}}
            if kind == "SUSPENDED":
                self.nodes.pop(node_id, None)
            if kind == "ACTIVE" and node_id not in self.nodes:
                spec = one["tpu"]["nodeSpec"][0]
                self.nodes[node_id] = spec["node"] | {
                    "name": f"{spec['parent']}/nodes/{node_id}",
                    "queuedResource": one["name"],
                    "state": "READY",
                    "health": "HEALTHY",
                }
                self.on_active(self.nodes[node_id])

    def _write_end(self, one: dict[str, Any], kind: str, value: str) -> None:
        """Writes DONE or FAILED as the trainer and its wrapper do."""
        script = one["tpu"]["nodeSpec"][0]["node"]["metadata"]["startup-script"]
        values = dict(re.findall(r"^([A-Z_]+)=(.*)$", script, re.MULTILINE))
        if kind == "done":
            self.object(f"{values['FOLDER']}/DONE").write_text("best accuracy 0.9\n")
            return
        whose = f"run {values['RUN']} attempt {values['ATTEMPT']}"
        text = f"FAILED {value}\n{whose}: the trainer ended with {value}\n"
        self.object(f"{values['FOLDER']}/FAILED").write_text(text)

    def _vanish(self, name: str) -> None:
        one = self.queued.pop(name)
        self.nodes.pop(one["tpu"]["nodeSpec"][0]["nodeId"], None)

    def delete(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        one = self.queued.get(name)
        if one is None:
            raise ApiError(404, f"Resource '{name}' was not found")
        if query.get("force") != "true" and one["state"]["state"] not in ("ACCEPTED", "FAILED"):
            raise ApiError(400, f"Resource '{name}' has nodes; use force")
        one["state"] = {"state": "DELETING"}
        one["_left"] = _DELETING_LOOKS
        return {"name": f"operations/delete-{name}", "done": False}

    # Requests.

    def answer(self, method: str, target: str, body: bytes, headers: Any) -> tuple[int, Any, dict]:
        """Returns the status, the body (an object for JSON, or bytes) and additional headers."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            try:
                return self._route(method, parts.path, query, body, headers)
            except ApiError as error:
                said = {"code": error.status, "message": str(error), "details": error.details}
                return error.status, {"error": said}, {}

    def _route(
        self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any
    ) -> tuple[int, Any, dict]:
        if path.startswith(("/storage/", "/upload/storage/")):
            self.tokens.append(headers.get("Authorization", ""))
            return self._storage(method, path, query, body, headers)
        if path.startswith("/computeMetadata/"):
            return self._metadata(path, headers)
        if path.startswith(("/discovery/", "/v1/")):
            return self._v1(path)
        match = re.fullmatch(r"/v2/(projects/p/locations/z)/(\w+)(?:/([\w-]+))?", path)
        if not match:
            raise ApiError(404, f"no such method: {path}")
        parent, kind, name = match.groups()
        if kind == "queuedResources":
            return 200, self._queued_resources(method, parent, name, query, body), {}
        found = self.nodes.get(name) if kind == "nodes" else None
        if kind == "operations":
            found = self.operations.get(f"{parent}/operations/{name}")
        if kind == "nodes" and name is None:
            return 200, {"nodes": list(self.nodes.values()), "unreachable": []}, {}
        if found is None:
            raise ApiError(404, f"Resource '{path}' was not found")
        if method == "DELETE":
            del self.nodes[name]
        return 200, found, {}

    def _queued_resources(
        self, method: str, parent: str, name: str | None, query: dict[str, str], body: bytes
    ) -> Any:
        if method == "POST":
            return self.create(parent, query, json.loads(body))
        if method == "DELETE":
            return self.delete(name or "", query)
        if name is None:  # pages of one
            names = sorted(self.queued)
            at = int(query.get("pageToken", 0))
            page = [one for one in [self.look(n, True) for n in names[at : at + 1]] if one]
            more = {"nextPageToken": str(at + 1)} if at + 1 < len(names) else {}
            return {"queuedResources": [_public(one) for one in page]} | more
        found = self.look(name)
        if found is None:
            raise ApiError(404, f"Resource '{name}' was not found")
        return _public(found)

    def _storage(
        self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any
    ) -> tuple[int, Any, dict]:
        match = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?", path)
        if not match or match[1] != self.bucket:
            raise ApiError(404, "The specified bucket does not exist.")
        if method == "POST":
            file = self.object(query["name"])
            if query.get("ifGenerationMatch") == "0" and file.exists():
                raise ApiError(412, "At least one of the pre-conditions you specified did not hold")
            new = file.with_name(file.name + "~")
            new.write_bytes(body)
            new.replace(file)
            return 200, {"name": query["name"]}, {}
        if match[2] is None:
            return 200, {"kind": "storage#objects"}, {}
        file = self.objects / unquote(match[2])
        if not file.is_file():
            raise ApiError(404, f"No such object: {unquote(match[2])}")
        if method == "DELETE":
            file.unlink()
            return 204, b"", {}
        if query.get("alt") == "media":
            data = file.read_bytes()
            start = int((re.match(r"bytes=(\d+)-$", headers.get("Range", "")) or [0, 0])[1])
            if start and start >= len(data):
                raise ApiError(416, "The requested range cannot be satisfied.")
            return (206 if "Range" in headers else 200), data[start:], {}
        return 200, {"generation": str(file.stat().st_mtime_ns)}, {}

    def _metadata(self, path: str, headers: Any) -> tuple[int, Any, dict]:
        if headers.get("Metadata-Flavor") != "Google":
            raise ApiError(403, "Missing Metadata-Flavor:Google header.")
        if path.endswith("/service-accounts/default/token"):
            return 200, {"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"}, {}
        if path.endswith("/attributes/agent-worker-number") and self.worker_number:
            return 200, self.worker_number.encode(), {}
        if path.endswith("/project/project-id"):
            return 200, b"p", {}
        if path.endswith("/instance/zone"):
            return 200, b"projects/1/zones/z", {}
        raise ApiError(404, "not there")

    def _v1(self, path: str) -> tuple[int, Any, dict]:
        if self.hangs.is_set():
            self._lock.release()  # other requests are answered meanwhile
            self._closing.wait()
            self._lock.acquire()
        if path.startswith("/discovery/"):
            get = {
                "id": "tpu.projects.locations.nodes.get",
                "path": "v1/{+name}",
                "httpMethod": "GET",
                "parameters": {"name": {"type": "string", "required": True, "location": "path"}},
                "parameterOrder": ["name"],
                "response": {"$ref": "Node"},
            }
            nodes = {"nodes": {"methods": {"get": get}}}
            locations = {"locations": {"resources": nodes}}
            return (
                200,
                {
                    "kind": "discovery#restDescription",
                    "name": "tpu",
                    "version": "v1",
                    "rootUrl": f"{self.url}/",
                    "servicePath": "",
                    "baseUrl": f"{self.url}/",
                    "schemas": {"Node": {"id": "Node", "type": "object", "properties": {}}},
                    "resources": {"projects": {"resources": locations}},
                },
                {},
            )
        node = self.nodes.get(path.rpartition("/")[2])
        if node is None:
            raise ApiError(404, f"Resource '{path}' was not found")
        known = ("state", "health", "networkEndpoints", "tensorflowVersion")
        return 200, {name: node[name] for name in known if name in node}, {}


def _public(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if not name.startswith("_")}


def _run_of(one: dict[str, Any]) -> str:
    return one["tpu"]["nodeSpec"][0]["node"]["labels"]["trainer-run"]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeCloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait 40 ms for the other end
    wbufsize = -1

    def _serve(self) -> None:
        fake = self.fake
        line = f"{self.command} {self.path}"
        body = self._body()
        fake.requests.append(line)
        fault = self._fault(line)
        status, found, headers = 0, {}, {}
        if fault is None or fault.arrives:
            status, found, headers = fake.answer(self.command, self.path, body, self.headers)
        if fault is not None:
            if not fault.status:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(2)
                return
            said = {"code": fault.status, "message": fault.message, "details": fault.details}
            status, found, headers = fault.status, {"error": said}, fault.headers
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # else curl waits a second for it
        return going_on

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _fault(self, line: str) -> Fault | None:
        for fault in self.fake.faults:
            if fault.times and re.search(fault.pattern, line):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    do_GET = do_POST = do_DELETE = do_PUT = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

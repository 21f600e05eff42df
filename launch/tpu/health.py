"""A TPU's health by API v1, as a second opinion: `python -m launch status --health`.

It comes from cloud-tpu-client 0.10, whose API has been unsupported since 2025-04-15. The launcher
acts on the state and health from API v2 alone. The client runs in a separate process with a time
limit: it retries for minutes if there is no answer, and importing it defines flags.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from launch.errors import redacted
from launch.records import Record
from launch.tpu.request import node_name
from launch.tpu.rest import is_loopback, one_line

LIMIT_S = 5.0
_SOURCE = "API v1"


def of(record: Record, limit_s: float = LIMIT_S) -> dict[str, str]:
    """Returns `state` and `health`, or a one-line `error`; {} for runs of other back ends."""
    spec = record.spec
    if spec.backend != "tpu-vm":
        return {}
    name = node_name(spec, record.restarts.attempt)
    where = (spec.options.zone, spec.options.project)
    command = [sys.executable, "-m", "launch.tpu.health", name, *where]
    root = str(Path(__file__).parents[2])
    try:
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=limit_s,
            cwd=root,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"source": _SOURCE, "error": f"no answer within {limit_s:g} s"}
    try:
        return json.loads(ended.stdout)
    except ValueError:
        said = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return {"source": _SOURCE, "error": redacted(one_line(said, 200))}


def _look_up(name: str, zone: str, project: str) -> dict[str, str]:
    try:
        from cloud_tpu_client import Client
    except ImportError as error:
        return {"error": f"cloud-tpu-client is not installed ({error})"}
    more = {}
    if is_loopback(os.environ.get("TPU_API_DISCOVERY_URL", "")):
        from google.auth.credentials import AnonymousCredentials

        more["credentials"] = AnonymousCredentials()
    try:
        # Never recoverable(): it reads absl flags, which are not parsed here.
        client = Client(tpu=name, zone=zone, project=project, **more)
        return {"state": client.state() or "", "health": client.health() or ""}
    except Exception as error:  # whatever the library raises is reported
        return {"error": redacted(one_line(str(error), 300))}


if __name__ == "__main__":
    print(json.dumps({"source": _SOURCE, **_look_up(*sys.argv[1:4])}))

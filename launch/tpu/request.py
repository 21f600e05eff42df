"""The request for a TPU: flags, checks, and what is sent. All functions are pure."""

import dataclasses
import json
import re
from typing import Any
from urllib.parse import urlencode

from launch.errors import LaunchError
from launch.interface import Document
from launch.spec import JobSpec, check_word, option
from launch.tpu import api, archive, startup, storage

LABEL = "trainer-run"  # on each node, with the run's random number
_TENSORFLOW = "2.20.0"  # as in requirements-tpu.txt
_MOST_METADATA = 256 * 1024  # bytes of a start-up script: Compute Engine's limit


@dataclasses.dataclass(frozen=True)
class Options:
    project: str = option("", "Google Cloud project. Required.")
    zone: str = option("", "Zone of the TPU, such as us-central2-b. Required.")
    accelerator: str = option(
        "", "Type and size, such as v5litepod-8, v6e-8, v4-8 or v2-8. Required."
    )
    runtime_version: str = option(
        "",
        "Image of the VM. Default: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e or tpu-ubuntu2204-base for "
        f"one host, tpu-vm-tf-{_TENSORFLOW}-pod-pjrt for several. Slices of several hosts were not "
        "tried; their image must have the client's version of TensorFlow.",
    )
    spot: bool = option(False, "Use a spot TPU: cheaper, but may be preempted. Default: on demand.")
    reserved: bool = option(False, "Use any of the project's reservations.")
    reservation: str = option("", "Use the reservation of this name.")
    code: str = option(
        "",
        "The code: git+https://HOST/REPO@REF or gs://BUCKET/CODE.tar.gz. Default: --folder is "
        "uploaded; from a git checkout, the files that git tracks.",
    )
    bucket: str = option(
        "", "Bucket for the run's folder if there is no --workdir. Default: PROJECT-trainer."
    )
    network: str = option("", "VPC network. Default: the project's.")
    subnetwork: str = option("", "Subnetwork of --network.")
    external_ips: bool = option(
        False, "Give the VM an external IP. Without one, it reaches packages and git by Cloud NAT."
    )
    service_account: str = option(
        "",
        "Service account of the VM, best a dedicated one that may write to the bucket. "
        "Default: Compute Engine's.",
    )
    valid_until_s: int = option(0, "Seconds to wait for the TPU before giving up. 0: wait forever.")


def check(spec: JobSpec) -> None:
    """Raises LaunchError for what Cloud TPU VMs cannot run."""
    options = spec.options
    for field in dataclasses.fields(Options):
        value = getattr(options, field.name)
        if isinstance(value, str) and field.name != "code":
            check_word(_flag(field.name), value)
    for name in ("project", "zone", "accelerator"):
        if not getattr(options, name):
            raise LaunchError(f"{_flag(name)}: required by --backend=tpu-vm")
    if not api.hosts(options.accelerator):
        raise LaunchError(
            f"--accelerator={options.accelerator}: unknown; use v2-8, v3-8, v4-8, v5p-8, "
            f"v5litepod-8, v6e-8, or a larger one of these"
        )
    if spec.nodes != 1:
        raise LaunchError(
            f"--nodes={spec.nodes}: TensorFlow trains on one TPU slice; use a larger "
            f"--accelerator, and leave --nodes out"
        )
    if spec.strategy not in ("", "auto", "tpu"):
        raise LaunchError(f"--strategy={spec.strategy}: must be tpu on a TPU; leave it out")
    tiers = [name for name in ("spot", "reserved", "reservation") if getattr(options, name)]
    if len(tiers) > 1:
        raise LaunchError(f"{_flag(tiers[0])} and {_flag(tiers[1])} exclude each other")
    if options.valid_until_s < 0:
        raise LaunchError(f"--valid-until-s={options.valid_until_s}: must be at least 0")
    _check_workdir(workdir(spec), "--workdir" if spec.workdir else "--bucket")
    _check_code(options.code)
    text = script(spec, 0, f"gs://bucket/{'x' * 99}")
    if len(text.encode()) > _MOST_METADATA:
        raise LaunchError(
            f"the trainer's flags: make the start-up script larger than {_MOST_METADATA >> 10} "
            f"KiB; put the values into a config file, --config"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_workdir(address: str, flag: str) -> None:
    if not address.startswith("gs://"):
        raise LaunchError(
            f"--workdir={address}: would be lost with the VM's disk; use gs://BUCKET/FOLDER, or "
            f"leave it out for gs://PROJECT-trainer/runs/NAME"
        )
    bucket, folder = storage.split(address)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise LaunchError(f"{flag}={address}: {bucket!r} is not a valid bucket name")
    parts = folder.split("/")
    if "" in parts or "." in parts or ".." in parts or any(ord(c) < 32 for c in folder):
        raise LaunchError(
            f"{flag}={address}: must be gs://BUCKET/FOLDER, without empty parts, '.', '..' or line "
            f"breaks"
        )


def _check_code(code: str) -> None:
    if not code:
        return
    is_git = re.fullmatch(r"git\+(https|ssh)://[^@\s]+@[\w./+][\w./+-]*", code, re.ASCII)
    if not is_git and not re.fullmatch(r"gs://[a-z0-9._-]+/[^\x00-\x1f]+", code):
        raise LaunchError(
            f"--code={code}: must be git+https://HOST/REPO@REF or gs://BUCKET/CODE.tar.gz"
        )


def workdir(spec: JobSpec) -> str:
    """Returns the run's folder as gs://BUCKET/FOLDER, without a trailing slash."""
    bucket = spec.options.bucket or f"{spec.options.project}-trainer"
    return spec.workdir.rstrip("/") or f"gs://{bucket}/runs/{spec.name}"


def runtime_version(options: Options) -> str:
    """Returns the VM's image."""
    if options.runtime_version:
        return options.runtime_version
    if api.hosts(options.accelerator) > 1:
        return f"tpu-vm-tf-{_TENSORFLOW}-pod-pjrt"
    kind = options.accelerator.partition("-")[0]
    images = {"v5litepod": "v2-alpha-tpuv5-lite", "v6e": "v2-alpha-tpuv6e"}
    return images.get(kind, "tpu-ubuntu2204-base")


def node_name(spec: JobSpec, attempt: int) -> str:
    """Returns the name of the queued resource of one start, and of its node."""
    return f"{spec.name}-r{attempt}" if attempt else spec.name


def render(spec: JobSpec) -> list[Document]:
    """Returns the upload of the code, the start-up script, and the request that contains it.

    RUN stands for the run's random number.
    """
    documents = []
    code = spec.options.code
    if not code:
        data = archive.pack(spec.folder)
        code = archive_address(spec, data)
        bucket, name = storage.split(code)
        text = (
            f"POST {storage.base_url()}{storage.upload_path(bucket, name)}\n"
            f"{len(data)} bytes, sha256 {archive.sha256(data)}\n"
        )
        documents.append(Document("upload of the code", text))
    start = script(spec, 0, code)
    documents.append(Document("start-up script, in the next request", start))
    query = urlencode({"queuedResourceId": node_name(spec, 0), "requestId": "UUID of RUN and 0"})
    address = api.parent(spec.options.project, spec.options.zone)
    sent = json.dumps(body(spec, 0, start), indent=2, ensure_ascii=False)
    text = f"POST {api.base_url()}{address}/queuedResources?{query}\n\n{sent}\n"
    documents.append(Document("request for the TPU", text))
    return documents


def archive_address(spec: JobSpec, data: bytes) -> str:
    """Returns where the packed code is uploaded to."""
    return f"{workdir(spec)}/launch/code-{archive.sha256(data)}.tar.gz"


def script(spec: JobSpec, attempt: int, code: str) -> str:
    """Returns the start-up script for one start of a run."""
    ref = sha256 = ""
    if code.startswith("git+"):
        code, _, ref = code.removeprefix("git+").rpartition("@")
    elif not spec.options.code:
        sha256 = code.rpartition("/code-")[2].removesuffix(".tar.gz")
    return startup.render(
        spec,
        attempt=attempt,
        node=node_name(spec, attempt),
        hosts=api.hosts(spec.options.accelerator),
        workdir=workdir(spec),
        code=code,
        code_ref=ref,
        code_sha256=sha256,
    )


def body(spec: JobSpec, attempt: int, start: str) -> dict[str, Any]:
    """Returns the QueuedResource to create, as values for JSON."""
    options = spec.options
    address = api.parent(options.project, options.zone).removeprefix("/v2/")
    names = {"network": options.network, "subnetwork": options.subnetwork}
    account = {"email": options.service_account} if options.service_account else {}
    node = {
        "acceleratorType": options.accelerator,
        "runtimeVersion": runtime_version(options),
        "networkConfig": {name: value for name, value in names.items() if value}
        | {"enableExternalIps": options.external_ips},
        "serviceAccount": account | {"scope": ["https://www.googleapis.com/auth/cloud-platform"]},
        "labels": {LABEL: spec.run.lower(), "trainer-name": spec.name},
        "metadata": {"startup-script": start},
    }
    name = node_name(spec, attempt)
    found: dict[str, Any] = {
        "tpu": {"nodeSpec": [{"parent": address, "nodeId": name, "node": node}]}
    }
    if options.spot:
        found["spot"] = {}
    if options.reserved or options.reservation:  # "-": any of them
        found["reservationName"] = f"{address}/reservations/{options.reservation or '-'}"
    if options.valid_until_s:
        found["queueingPolicy"] = {"validUntilDuration": f"{options.valid_until_s}s"}
    return found

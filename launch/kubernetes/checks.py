"""Checks of the flags, before anything is sent."""

import re
from pathlib import PurePosixPath

from launch.errors import LaunchError
from launch.kubernetes.pod import CLAIM_AT, RANK_ENV, bucket_of, workdir
from launch.spec import JobSpec, check_word

# Topologies of one host, by the accelerator's name on GKE. TensorFlow cannot drive several hosts
# there: it would need a TPU name that the Cloud TPU API knows.
ONE_HOST = {
    "tpu-v4-podslice": ("2x2x1",),
    "tpu-v5p-slice": ("2x2x1",),
    "tpu-v5-lite-device": ("1x1", "2x2", "2x4"),
    "tpu-v5-lite-podslice": ("1x1", "2x2", "2x4"),
    "tpu-v6e-slice": ("1x1", "2x2", "2x4"),
}

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*"
_LABEL_VALUE = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = rf"({_SUBDOMAIN}/)?{_LABEL_VALUE}"
_TOLERATION = rf"{_LABEL_NAME}(={_LABEL_VALUE})?(:(NoSchedule|PreferNoSchedule|NoExecute))?"
_DNS = "a name of Kubernetes: lower-case letters, digits and '-'"
_IMAGE = r"[a-z0-9][\w.:/@-]*"
_PATTERNS = {
    "namespace": (_LABEL, _DNS),
    "image": (_IMAGE, "the name of an image, such as REGISTRY/NAME:TAG"),
    "cpu": (r"(?!0*m?\Z)\d{1,9}(\.\d{1,3}|m)?", "a number of cores, such as 4 or 500m"),
    "memory": (r"(?!0*\D)\d{1,18}(\.\d{1,3})?([kMGT]|[KMGT]i)?", "a number of bytes, such as 16Gi"),
    "gpu_type": (_LABEL_VALUE, "the value of a node's label, such as nvidia-l4"),
    "volume_claim": (_SUBDOMAIN, _DNS),
    "service_account": (_SUBDOMAIN, _DNS),
    "image_pull_secret": (_SUBDOMAIN, _DNS),
    "env_from_secret": (_SUBDOMAIN, _DNS),
    "queue": (_LABEL, _DNS),
    "priority_class": (_SUBDOMAIN, _DNS),
    "node_selector": (f"{_LABEL_NAME}={_LABEL_VALUE}", "a node's label, such as disk=ssd"),
    "toleration": (_TOLERATION, "a taint, such as NAME=VALUE:NoSchedule"),
}


def check(spec: JobSpec) -> None:
    options = spec.options
    for name, (pattern, text) in _PATTERNS.items():
        value = getattr(options, name)
        for one in value if isinstance(value, tuple) else [value]:
            needed = name in ("namespace", "image", "cpu", "memory")
            if (one or needed) and not re.fullmatch(pattern, one, re.ASCII):
                raise LaunchError(f"--{name.replace('_', '-')}={one}: must be {text}")
    check_word("--context", options.context)
    if RANK_ENV in dict(spec.env):
        raise LaunchError(f"--env={RANK_ENV}=…: set by the launcher; leave it out")
    if not 1024 <= options.port < 2**16:
        raise LaunchError(f"--port={options.port}: must be 1024 to 65535")
    if options.gpus < 0:
        raise LaunchError(f"--gpus={options.gpus}: must be at least 0")
    if options.gpu_type and not options.gpus:
        raise LaunchError(f"--gpu-type={options.gpu_type}: needs the number of GPUs, --gpus")
    _check_tpu(spec)
    _check_workdir(spec)


def _check_tpu(spec: JobSpec) -> None:
    options = spec.options
    kind, topology = options.tpu_type, options.tpu_topology
    if not kind:
        if topology:
            raise LaunchError(f"--tpu-topology={topology}: needs the kind of TPU, --tpu-type")
        return
    if kind not in ONE_HOST:
        raise LaunchError(f"--tpu-type={kind}: unknown; one of {', '.join(ONE_HOST)}")
    if topology not in ONE_HOST[kind]:
        raise LaunchError(
            f"--tpu-topology={topology}: must be one host's, {' or '.join(ONE_HOST[kind])} for "
            f"{kind}; TPUs of several hosts need --backend=tpu-vm"
        )
    if spec.nodes > 1:
        raise LaunchError(
            f"--nodes={spec.nodes}: must be 1 with --tpu-type; TPUs of several hosts need "
            f"--backend=tpu-vm"
        )
    if options.gpus:
        raise LaunchError(
            f"--gpus={options.gpus}: a worker has GPUs or a TPU, not both; leave one out"
        )
    if spec.strategy not in ("", "auto", "tpu"):
        raise LaunchError(
            f"--strategy={spec.strategy}: leaves the TPU of --tpu-type idle; use --strategy=tpu"
        )


def _check_workdir(spec: JobSpec) -> None:
    path, bucket = PurePosixPath(workdir(spec)), bucket_of(spec)
    what = f"--workdir={spec.workdir or path}"
    if ".." in path.parts:
        raise LaunchError(f"{what}: must not contain '..'")
    if spec.workdir.startswith("gs://"):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]", bucket, re.ASCII):
            raise LaunchError(f"{what}: must be gs://BUCKET/FOLDER")
    elif "://" in spec.workdir:
        raise LaunchError(f"{what}: must be gs://BUCKET/FOLDER or a folder in {CLAIM_AT}")
    elif not spec.options.volume_claim:
        raise LaunchError(
            f"{what}: would be lost with the pod; keep it in a volume with --volume-claim, or in a "
            f"bucket with --workdir=gs://BUCKET/FOLDER"
        )
    elif PurePosixPath(CLAIM_AT) not in path.parents:
        raise LaunchError(
            f"{what}: would be lost with the pod; use a folder in {CLAIM_AT}, where "
            f"--volume-claim is mounted"
        )

"""The pod of a worker: its command, node, volumes and environment."""

import json
import math
from typing import Any

from launch.group import tf_config
from launch.spec import JobSpec

JOB = CONTAINER = "worker"
INDEX = "batch.kubernetes.io/job-completion-index"
RANK_ENV = "LAUNCH_RANK"
CLAIM_AT, _BUCKETS_AT = "/runs", "/gcs"
USER = 1000  # as in launch/Dockerfile
GRACE_S = 120  # seconds to save after SIGTERM
_MEETING_S = 600  # for each worker, a node may have to start and pull the image


def workdir(spec: JobSpec) -> str:
    """Returns the run's folder as the trainer sees it; a bucket is mounted."""
    if spec.workdir.startswith("gs://"):
        bucket, _, folder = spec.workdir.removeprefix("gs://").partition("/")
        return f"{_BUCKETS_AT}/{bucket}/{folder.strip('/') or spec.name}"
    return spec.workdir or f"{CLAIM_AT}/{spec.name}"


def bucket_of(spec: JobSpec) -> str:
    """Returns the workdir's bucket, or "" if it is not in one."""
    is_address = spec.workdir.startswith("gs://")
    return spec.workdir.removeprefix("gs://").partition("/")[0] if is_address else ""


def pod_spec(spec: JobSpec) -> dict[str, Any]:
    options = spec.options
    account, secret = options.service_account, options.image_pull_secret
    volumes, mounts = _volumes(spec)
    return {
        "restartPolicy": "Never",  # the only one that a Job with podFailurePolicy allows
        "terminationGracePeriodSeconds": GRACE_S,
        **({"serviceAccountName": account} if account else {}),
        "automountServiceAccountToken": bool(account),
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        **({"priorityClassName": options.priority_class} if options.priority_class else {}),
        **_placement(spec),
        "securityContext": _pod_security(spec),
        "containers": [_container(spec, mounts)],
        "volumes": volumes,
    }


def _user(spec: JobSpec) -> int:
    """Returns the user ID: root on a TPU, whose driver locks more memory than users may."""
    return 0 if spec.options.tpu_type else USER


def _pod_security(spec: JobSpec) -> dict[str, Any]:
    user = _user(spec)
    return {
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # or each start visits all checkpoints
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _placement(spec: JobSpec) -> dict[str, Any]:
    options = spec.options
    labels = dict(text.split("=", 1) for text in options.node_selector)
    tolerations = [_toleration(text) for text in options.toleration]
    if options.gpus:
        tolerations.append(_toleration("nvidia.com/gpu:NoSchedule"))
    if options.gpu_type:
        labels["cloud.google.com/gke-accelerator"] = options.gpu_type
    if options.tpu_type:
        tolerations.append(_toleration("google.com/tpu:NoSchedule"))
        labels["cloud.google.com/gke-tpu-accelerator"] = options.tpu_type
        labels["cloud.google.com/gke-tpu-topology"] = options.tpu_topology
    if options.spot:
        tolerations.append(_toleration("cloud.google.com/gke-spot=true:NoSchedule"))
        labels["cloud.google.com/gke-spot"] = "true"
    return ({"nodeSelector": labels} if labels else {}) | (
        {"tolerations": tolerations} if tolerations else {}
    )


def _toleration(text: str) -> dict[str, str]:
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    how = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": key, **how} | ({"effect": effect} if effect else {})


def _volumes(spec: JobSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the volumes, and where they are mounted."""
    options, bucket = spec.options, bucket_of(spec)
    volumes: list[dict[str, Any]] = []
    mounts = []
    if options.volume_claim:
        claim = {"claimName": options.volume_claim}
        volumes.append({"name": "runs", "persistentVolumeClaim": claim})
        mounts.append({"name": "runs", "mountPath": CLAIM_AT})
    if bucket:
        user = _user(spec)  # otherwise the mount belongs to root
        attributes = {
            "bucketName": bucket,
            "mountOptions": f"implicit-dirs,uid={user},gid={user}",
        }
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": "bucket", "csi": driver})
        mounts.append({"name": "bucket", "mountPath": f"{_BUCKETS_AT}/{bucket}"})
    # GPUs without a direct link exchange data through it; the default is 64 MB.
    volumes.append({"name": "memory", "emptyDir": {"medium": "Memory"}})
    mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    return volumes, mounts


def _container(spec: JobSpec, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    options, secret = spec.options, spec.options.env_from_secret
    limits = {"memory": options.memory}
    if options.gpus:
        limits["nvidia.com/gpu"] = str(options.gpus)
    if options.tpu_type:
        chips = math.prod(int(side) for side in options.tpu_topology.split("x"))
        limits["google.com/tpu"] = str(chips)
    security: dict[str, Any] = {"allowPrivilegeEscalation": False}
    is_tpu = bool(options.tpu_type)
    security["capabilities"] = {"add": ["SYS_RESOURCE"]} if is_tpu else {"drop": ["ALL"]}
    return {
        "name": CONTAINER,
        "image": options.image,
        "command": [_unexpanded(word) for word in _command(spec)],
        "args": [_unexpanded(word) for word in _args(spec)],
        "env": _env(spec),
        **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        **({"ports": [{"containerPort": options.port}]} if spec.is_group else {}),
        # No CPU limit: idle cores may be used beyond the request.
        "resources": {"requests": {"cpu": options.cpu, "memory": options.memory}, "limits": limits},
        "securityContext": security,
        "volumeMounts": mounts,
        # Keeps the last lines of the log, which show why it ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _command(spec: JobSpec) -> list[str]:
    """Returns the command that starts Python.

    tini is the container's first process: there, Python would ignore a SIGTERM that arrives before
    it has a handler, and be killed without saving.
    """
    if spec.options.tpu_type:
        lock = 'ulimit -l 68719476736 && exec "$@"'  # above the default limit
        return ["tini", "--", "bash", "-c", lock, "bash", "python"]
    return ["tini", "--", "python"]


def _args(spec: JobSpec) -> list[str]:
    args = list(spec.trainer_args(workdir(spec)))
    if spec.options.tpu_type:
        args.insert(2, "--tpu=local")  # before the user's own flags: the last one counts
    flag = "--cluster_timeout_s"
    if spec.is_group and not any(arg.startswith((flag, flag[1:])) for arg in args):
        args.append(f"{flag}={_MEETING_S}")
    return args


def _env(spec: JobSpec) -> list[dict[str, Any]]:
    """Returns the environment. Kubernetes expands $(NAME) in a variable after NAME."""
    values = {"PYTHONUNBUFFERED": "1"}
    values |= dict(spec.env)
    env: list[dict[str, Any]] = [
        {"name": name, "value": _unexpanded(value)} for name, value in values.items()
    ]
    if spec.is_group:
        path = f"metadata.annotations['{INDEX}']"
        env.append({"name": RANK_ENV, "valueFrom": {"fieldRef": {"fieldPath": path}}})
        env.append({"name": "TF_CONFIG", "value": _tf_config(spec)})
    return env


def _tf_config(spec: JobSpec) -> str:
    """Returns one TF_CONFIG for all workers; Kubernetes fills in the rank when a pod starts."""
    addresses = [
        f"{spec.name}-{JOB}-0-{rank}.{spec.name}:{spec.options.port}" for rank in range(spec.nodes)
    ]
    whole = json.loads(tf_config(addresses, 0))
    whole["task"]["index"] = "RANK"
    return json.dumps(whole).replace('"RANK"', f"$({RANK_ENV})")


def _unexpanded(text: str) -> str:
    """Escapes a text that Kubernetes expands: $(NAME) is a variable, $$ a $."""
    return text.replace("$", "$$")

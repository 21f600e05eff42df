"""A JobSet on Kubernetes: one pod per worker, restarted by the cluster itself. Needs kubectl.

The cluster needs the JobSet controller (jobset.sigs.k8s.io, 0.8 or later). One manifest is sent;
afterwards `watch` only reads, and may stop and start at any time.
"""

import contextlib
import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from launch.errors import LaunchError
from launch.interface import Document, Observation
from launch.kubernetes.checks import ONE_HOST, check
from launch.kubernetes.kubectl import CREATE, Kubectl, KubectlError, LogStream, current_context
from launch.kubernetes.manifest import KEPT_S, RUN_LABEL, manifest
from launch.kubernetes.pod import CLAIM_AT, CONTAINER, GRACE_S
from launch.kubernetes.status import (
    age_and_rank,
    has_ended,
    has_logs,
    is_being_deleted,
    label,
    observation,
    rank_of,
)
from launch.kubernetes.yaml_text import to_yaml
from launch.policy import State
from launch.records import Record
from launch.signals import Signals
from launch.spec import JobSpec, option

__all__ = ["Job", "Options", "check", "render"]

LOOK_S = 2.0
_GONE_S = GRACE_S + 180.0  # seconds from a delete to the end of the last pod


@dataclasses.dataclass(frozen=True)
class Options:
    namespace: str = option("default", "Namespace for everything that is created.")
    context: str = option(
        "", "Context of kubectl, which names the cluster. Default: the current one."
    )
    image: str = option(
        "trainer:latest",
        "Image built from launch/Dockerfile, in a registry that the cluster can pull from.",
    )
    cpu: str = option("4", "CPU cores per worker, such as 4 or 500m.")
    memory: str = option("16Gi", "Memory per worker; a worker that exceeds it is killed.")
    gpus: int = option(0, "GPUs per worker (nvidia.com/gpu).")
    gpu_type: str = option("", "GPU type on GKE, such as nvidia-l4 or nvidia-h100-80gb.")
    tpu_type: str = option("", f"TPU type on GKE: {', '.join(ONE_HOST)}.")
    tpu_topology: str = option("", "Topology of one host: 1x1, 2x2 or 2x4; 2x2x1 for v4 and v5p.")
    spot: bool = option(False, "Use GKE's spot nodes, which leave a run about 15 s to save.")
    volume_claim: str = option(
        "", f"PersistentVolumeClaim to mount at {CLAIM_AT}; several nodes need ReadWriteMany."
    )
    service_account: str = option(
        "", "Service account of the pods; it needs access to a gs:// workdir."
    )
    image_pull_secret: str = option("", "Secret in the namespace for pulling the image.")
    env_from_secret: str = option(
        "", "Secret in the namespace with environment variables for the trainer."
    )
    queue: str = option("", "LocalQueue of Kueue.")
    priority_class: str = option("", "PriorityClass of the pods.")
    node_selector: tuple[str, ...] = option((), "Label that a node must have, as NAME=VALUE.")
    toleration: tuple[str, ...] = option(
        (), "Taint of nodes to tolerate, as NAME[=VALUE][:EFFECT]."
    )
    port: int = option(12345, "Port at which the workers meet.")


def render(spec: JobSpec) -> list[Document]:
    """Returns the kubectl command, titled, and the manifest that it reads."""
    kubectl = Kubectl(spec.options.context, spec.options.namespace)
    return [Document(shlex.join(kubectl.command(*CREATE)), to_yaml(manifest(spec)))]


class Job:
    restarts_itself = True
    ends_with_watch = False
    poll_s = 10.0
    backoff_s = 0.0

    def __init__(self, record: Record, signals: Signals):
        self._record, self._spec, self._signals = record, record.spec, signals

    def create(self, attempt: int) -> None:
        """Creates the JobSet in kubectl's current context, where the run then stays."""
        del attempt  # the JobSet restarts itself
        if not self._spec.options.context and "context" not in self._record.handle:
            with contextlib.suppress(KubectlError):  # inside a pod there is no context
                self._record.handle["context"] = current_context()
                self._record.save()
        if self._adopts(self._jobset()):
            return
        try:
            self._kubectl.create(render(self._spec)[0].text)
        except KubectlError:
            if not self._adopts(self._jobset()):  # created, and only the answer was lost?
                raise

    def _adopts(self, jobset: dict[str, Any] | None) -> bool:
        """Returns whether the JobSet is this run's; deletes one of an earlier run of this name.

        Raises:
            LaunchError: if the JobSet belongs to somebody else.
        """
        if jobset is None:
            return False
        name, namespace = self._spec.name, self._spec.options.namespace
        was_ours = label(jobset, RUN_LABEL) == self._record.handle.get("before")
        if self._is_ours(jobset) and not is_being_deleted(jobset):
            return True
        if self._is_ours(jobset) or (was_ours and has_ended(jobset)):
            self._delete(jobset)
            return False
        raise LaunchError(
            f"{name}: namespace {namespace} has a JobSet of this name that was created elsewhere "
            f"or still runs; choose another --name"
        )

    def observe(self) -> Observation:
        try:
            jobset = self._jobset()
            if jobset is None or not self._is_ours(jobset):
                # Never a stale answer: the cluster has one store. Waiting would be forever.
                return Observation(
                    State.FAILED,
                    message=f"its JobSet no longer exists: it was deleted, or ended over "
                    f"{KEPT_S // 86400} days ago; submit the same command again to resume",
                )
            return observation(jobset, self._pods())
        except KubectlError as error:
            return Observation(State.UNKNOWN, message=str(error))

    def delete(self) -> None:
        """Deletes the JobSet and waits until its pods have saved and ended."""
        jobset = self._jobset()
        if jobset is not None and self._is_ours(jobset):
            self._delete(jobset)

    def _delete(self, jobset: dict[str, Any]) -> None:
        signals, name, uid = self._signals, self._spec.name, jobset["metadata"]["uid"]
        self._kubectl.delete(name)
        signals_before, until = len(signals.received), signals.now() + _GONE_S
        while True:
            left = self._jobset()
            if left is None or left["metadata"]["uid"] != uid:
                return
            if signals.now() > until or len(signals.received) > signals_before:
                raise LaunchError(
                    f"{name}: its JobSet is being deleted, but its pods have not ended yet; "
                    f"`python -m launch cancel {name}` waits for them"
                )
            signals.wait(LOOK_S)

    def progress(self) -> str:
        return ""  # the run's folder is in the cluster

    def logs(self, follow: bool) -> Iterator[str]:
        """Yields the lines of existing pods; those of an earlier start no longer exist."""
        jobset = self._jobset()
        if jobset is None or not self._is_ours(jobset):
            raise LaunchError(f"{self._spec.name}: its JobSet and logs no longer exist")
        seen: set[str] = set()
        with contextlib.ExitStack() as stack:
            streams: list[LogStream] = []
            while True:
                ended = not follow or jobset is None or has_ended(jobset)
                for pod in sorted(self._pods(), key=age_and_rank):
                    uid = pod["metadata"]["uid"]
                    if uid not in seen and has_logs(pod):
                        seen.add(uid)
                        stream = stack.enter_context(self._log(pod, follow))
                        streams.append(stream)
                        if not follow:  # one after the other
                            yield from self._read([stream], math.inf)
                yield from self._read(streams, math.inf if ended else self.poll_s)
                if ended or self._signals.received:
                    return
                jobset = self._jobset()

    def _log(self, pod: dict[str, Any], follow: bool) -> LogStream:
        flags = [f"--container={CONTAINER}", *(["--follow"] if follow else [])]
        command = self._kubectl.command("logs", pod["metadata"]["name"], *flags)
        return LogStream(command, f"[{rank_of(pod)}] ")

    def _read(self, streams: Sequence[LogStream], seconds: float) -> Iterator[str]:
        """Yields lines until all streams have ended, a signal arrives, or the time is up."""
        until = self._signals.now() + seconds
        while not self._signals.received:
            is_open = [stream for stream in streams if not stream.has_ended]
            left = until - self._signals.now()
            if left <= 0 or (not is_open and seconds == math.inf):
                return
            self._signals.wait(min(left, LOOK_S), [stream.descriptor for stream in is_open])
            for stream in is_open:
                yield from stream.lines()

    def _is_ours(self, jobset: dict[str, Any]) -> bool:
        return label(jobset, RUN_LABEL) == self._spec.run

    def _jobset(self) -> dict[str, Any] | None:
        """Returns the JobSet of this name, even if it is somebody else's."""
        return self._kubectl.jobset(self._spec.name)

    def _pods(self) -> list[dict[str, Any]]:
        return self._kubectl.pods(self._spec.name)

    @property
    def _kubectl(self) -> Kubectl:
        """Calls for the cluster that the run was created in."""
        options = self._spec.options
        context = options.context or self._record.handle.get("context", "")
        return Kubectl(context, options.namespace)

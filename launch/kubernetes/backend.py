"""A JobSet on Kubernetes: a pod a worker, started again by the cluster itself. Needs kubectl.

The cluster needs the JobSet controller (jobset.sigs.k8s.io, 0.8 or later). All that is sent is one
manifest; what follows the run afterwards only reads, and may come and go.
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
_GONE_S = GRACE_S + 180.0  # from a delete to the end of the last pod


@dataclasses.dataclass(frozen=True)
class Options:
    namespace: str = option("default", "Of all that is made.")
    context: str = option("", "The cluster, as kubectl's config names it; its current one.")
    image: str = option("trainer:latest", "Built from launch/Dockerfile, where the cluster pulls.")
    cpu: str = option("4", "CPU cores a worker, as Kubernetes writes them.")
    memory: str = option("16Gi", "Memory a worker; what takes more is killed.")
    gpus: int = option(0, "GPUs a worker (nvidia.com/gpu).")
    gpu_type: str = option("", "Of GKE: nvidia-l4, nvidia-h100-80gb, …")
    tpu_type: str = option("", f"Of GKE: {', '.join(ONE_HOST)}.")
    tpu_topology: str = option("", "Of one host: 1x1, 2x2 or 2x4; 2x2x1 for v4 and v5p.")
    spot: bool = option(
        False, "Spot nodes of GKE: they leave a run about 15 s to save, whatever it may take."
    )
    volume_claim: str = option(
        "", f"A PersistentVolumeClaim, at {CLAIM_AT}: for several nodes of access ReadWriteMany."
    )
    service_account: str = option("", "Of the pods; it must be allowed to use a gs:// workdir.")
    image_pull_secret: str = option("", "A Secret of the namespace, to pull the image with.")
    env_from_secret: str = option("", "A Secret of the namespace: environment of the trainer.")
    queue: str = option("", "A LocalQueue of Kueue.")
    priority_class: str = option("", "A PriorityClass of the cluster.")
    node_selector: tuple[str, ...] = option((), "A node's label, as NAME=VALUE.")
    toleration: tuple[str, ...] = option((), "A node's taint, as NAME[=VALUE][:EFFECT].")
    port: int = option(12345, "Of each worker, where they meet.")


def render(spec: JobSpec) -> list[Document]:
    """One command, and what it reads."""
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
        """The cluster that is kubectl's current one now stays this run's, whichever is later."""
        del attempt  # the JobSet starts itself again
        if not self._spec.options.context and "context" not in self._record.handle:
            with contextlib.suppress(KubectlError):  # there is none within a pod
                self._record.handle["context"] = current_context()
                self._record.save()
        if self._adopts(self._jobset()):
            return
        try:
            self._kubectl.create(render(self._spec)[0].text)
        except KubectlError:
            if not self._adopts(self._jobset()):  # made, and only the answer was lost?
                raise

    def _adopts(self, jobset: dict[str, Any] | None) -> bool:
        """Whether it is this run; takes one away that this run's name had before.

        Raises:
            LaunchError: where it is somebody else's.
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
            f"{name}: namespace {namespace} has a JobSet of this name that was made elsewhere, or "
            f"still runs; choose another --name"
        )

    def observe(self) -> Observation:
        try:
            jobset = self._jobset()
            if jobset is None or not self._is_ours(jobset):
                # No stale copy: the cluster has one store. To wait for it would be for ever.
                return Observation(
                    State.FAILED,
                    message=f"its JobSet is not there any more: it was deleted, or ended "
                    f"{KEPT_S // 86400} days ago; the same command, submitted again, goes on",
                )
            return observation(jobset, self._pods())
        except KubectlError as error:
            return Observation(State.UNKNOWN, message=str(error))

    def delete(self) -> None:
        """Asks for the end, and waits for it: the pods save first."""
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
                    f"{name}: its JobSet is being deleted, and its pods have not ended yet; "
                    f"`python -m launch cancel {name}` waits for them"
                )
            signals.wait(LOOK_S)

    def progress(self) -> str:
        return ""  # the run's folder is in the cluster

    def logs(self, follow: bool) -> Iterator[str]:
        """Of the pods that there are: those of an earlier start are gone with it."""
        jobset = self._jobset()
        if jobset is None or not self._is_ours(jobset):
            raise LaunchError(f"{self._spec.name}: its JobSet is not there any more, nor are logs")
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
        """Lines as they come, until all streams have ended, a signal comes, or the time is up."""
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
        """The JobSet of this name, whosever it is."""
        return self._kubectl.jobset(self._spec.name)

    def _pods(self) -> list[dict[str, Any]]:
        return self._kubectl.pods(self._spec.name)

    @property
    def _kubectl(self) -> Kubectl:
        """In the cluster that the run is made in."""
        options = self._spec.options
        context = options.context or self._record.handle.get("context", "")
        return Kubectl(context, options.namespace)

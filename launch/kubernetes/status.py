"""The state of a run, from its JobSet and pods as kubectl prints them."""

from typing import Any

from launch.interface import Observation
from launch.kubernetes.kubectl import short
from launch.kubernetes.manifest import QUEUE_LABEL
from launch.kubernetes.pod import CONTAINER, INDEX
from launch.policy import Outcome, State, outcome

_STARTED = ("Running", "Succeeded")
_ORDINARY = ("ContainerCreating", "PodInitializing")


def label(value: dict[str, Any], name: str) -> str:
    return _of(value, "metadata", "labels").get(name, "")


def has_ended(jobset: dict[str, Any]) -> bool:
    return not {"Completed", "Failed"}.isdisjoint(_conditions(jobset))


def is_being_deleted(jobset: dict[str, Any]) -> bool:
    return bool(_of(jobset, "metadata").get("deletionTimestamp"))


def has_logs(pod: dict[str, Any]) -> bool:
    return _of(pod, "status").get("phase") not in (None, "Pending")


def rank_of(pod: dict[str, Any]) -> int:
    metadata = _of(pod, "metadata")
    return int(_of(metadata, "annotations").get(INDEX) or _of(metadata, "labels").get(INDEX) or 0)


def age_and_rank(pod: dict[str, Any]) -> tuple[str, int]:
    return pod["metadata"].get("creationTimestamp", ""), rank_of(pod)


def observation(jobset: dict[str, Any], pods: list[dict[str, Any]]) -> Observation:
    """Returns the state of a run."""
    conditions = _conditions(jobset)
    if "Completed" in conditions:
        return Observation(State.SUCCEEDED, exit_code=0)
    if "Failed" in conditions:
        code, who = _first_to_end(pods)
        failed = conditions["Failed"]
        why = f"{failed.get('reason', 'Failed')}: {failed.get('message', '')}"
        return Observation(State.FAILED, exit_code=code, message=short(f"{who}{why}"))
    if is_being_deleted(jobset):
        return Observation(State.UNKNOWN, message="its JobSet is being deleted")
    if _of(jobset, "spec").get("suspend") or "Suspended" in conditions:
        queue = label(jobset, QUEUE_LABEL)
        message = f"waiting in queue {queue}" if queue else "suspended"
        return Observation(State.QUEUED, message=message)
    return _in_progress(jobset, pods)


def _in_progress(jobset: dict[str, Any], pods: list[dict[str, Any]]) -> Observation:
    nodes = _of(jobset["spec"]["replicatedJobs"][0], "template", "spec").get("parallelism", 1)
    latest = {rank_of(pod): pod for pod in sorted(pods, key=age_and_rank)}
    running = [pod for pod in latest.values() if pod["status"].get("phase") in _STARTED]
    status = _of(jobset, "status")
    notes = []
    if restarts := status.get("restarts", 0):
        counted = status.get("restartsCountTowardsMax", 0)
        most = _of(jobset, "spec", "failurePolicy").get("maxRestarts", 0)
        notes.append(f"restart {restarts}, {counted} of {most} charged")
    if len(running) >= nodes:
        return Observation(State.RUNNING, message="; ".join(notes))
    waiting = (f"worker {rank}: {why}" for rank, pod in latest.items() if (why := _why_not(pod)))
    notes += [next(waiting, f"{len(running)} of {nodes} pods running")]
    return Observation(State.PROVISIONING if pods else State.QUEUED, message="; ".join(notes))


def _why_not(pod: dict[str, Any]) -> str:
    """Returns what keeps a pod from running, or "" if nothing in particular does."""
    status = pod["status"]
    if status.get("phase") == "Failed":
        return _ending(pod)
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return short(f"{condition.get('reason', '')}: {condition.get('message', '')}")
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or []:
            waiting = _of(container, "state", "waiting")
            if waiting.get("reason", "ContainerCreating") not in _ORDINARY:
                return short(f"{waiting['reason']}: {waiting.get('message', '')}")
    return ""


def _terminated(pod: dict[str, Any]) -> dict[str, Any]:
    """Returns how the trainer ended in a pod; {} if it has not ended, or it is unknown."""
    for container in _of(pod, "status").get("containerStatuses") or []:
        if container["name"] == CONTAINER:
            return _of(container, "state", "terminated")
    return {}


def _ending(pod: dict[str, Any]) -> str:
    end, status = _terminated(pod), _of(pod, "status")
    if not end:
        message = status.get("message", "for an unknown reason")
        return short(f"{status.get('reason', 'failed')}: {message}")
    code = end["exitCode"]
    if end.get("reason") == "OOMKilled":
        return f"ended with {code} (OOMKilled: it exceeded --memory)"
    if code == 137:
        return "ended with 137 (killed: out of memory, or with its node)"
    return f"ended with {code}"


def _first_to_end(pods: list[dict[str, Any]]) -> tuple[int | None, str]:
    """Returns the exit code that the run failed with, and a text that names the worker; (None, "")
    if no pod shows it."""

    def order(pod: dict[str, Any]) -> tuple[bool, bool, str, int]:
        end = _terminated(pod)
        # An ignored end is not why the run failed; 200 means that another worker ended first.
        ignored = "DisruptionTarget" in _conditions(pod) or (
            bool(end) and outcome(end["exitCode"]) is Outcome.RESTART
        )
        brought_down = end.get("exitCode") == 200
        return ignored, brought_down, end.get("finishedAt", "~"), rank_of(pod)

    failed = [pod for pod in pods if _of(pod, "status").get("phase") == "Failed"]
    if not failed:
        return None, ""
    first = min(failed, key=order)
    end = _terminated(first)
    said = end.get("message", "").strip().splitlines()
    last_words = f" ({short(said[-1])})" if said else ""
    who = f"worker {rank_of(first)} {_ending(first)}{last_words}; "
    return end.get("exitCode"), who


def _conditions(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the conditions that are true, by type."""
    conditions = _of(value, "status").get("conditions") or []
    return {c["type"]: c for c in conditions if c.get("status") == "True"}


def _of(value: dict[str, Any], *names: str) -> dict[str, Any]:
    """Returns a part of an object, or {} if it is left out."""
    for name in names:
        value = value.get(name) or {}
    return value

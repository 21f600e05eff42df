"""The JobSet: a Job with one pod per worker, and the rules for restarting it."""

from typing import Any

from launch.kubernetes.pod import CONTAINER, JOB, bucket_of, pod_spec
from launch.policy import Outcome, outcome
from launch.spec import JobSpec

RUN_LABEL = "trainer-launch/run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KEPT_S = 7 * 24 * 3600  # seconds for which an ended JobSet is kept


def manifest(spec: JobSpec) -> dict[str, Any]:
    """Returns the JobSet as values for JSON."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": spec.name,
            "namespace": spec.options.namespace,
            "labels": labels(spec),
        },
        "spec": {
            "ttlSecondsAfterFinished": KEPT_S,
            # Workers look each other up before they are ready.
            "network": {
                "enableDNSHostnames": True,
                "publishNotReadyAddresses": True,
                "subdomain": spec.name,
            },
            "failurePolicy": {
                "maxRestarts": spec.max_restarts,
                # Worker 0 of the last start must have released the run's folder.
                "restartStrategy": "BlockingRecreate",
                # Without a matching rule, a failed Job restarts the JobSet, and that is counted.
                "rules": [
                    {
                        "name": "failedByItself",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": JOB, "replicas": 1, "template": {"spec": _job(spec)}},
            ],
        },
    }


def labels(spec: JobSpec) -> dict[str, str]:
    """Returns the labels that name the run and its queue."""
    queue = spec.options.queue
    return {RUN_LABEL: spec.run} | ({QUEUE_LABEL: queue} if queue else {})


def _job(spec: JobSpec) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        "completions": spec.nodes,
        "parallelism": spec.nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_rules()},
        "template": {"metadata": _pod_metadata(spec), "spec": pod_spec(spec)},
    }


def _pod_rules() -> list[dict[str, Any]]:
    """Returns launch/policy.py as rules of a Job, of which the first that matches applies.

    Any other exit code fails the Job at once, and the JobSet restarts, charged. No rule can limit
    how often a run ends without a new checkpoint.
    """

    def codes(of: Outcome) -> dict[str, Any]:
        values = [code for code in range(1, 256) if outcome(code) is of]
        return {"containerName": CONTAINER, "operator": "In", "values": values}

    return [
        # All workers stop together, each is created again, and they meet again.
        {"action": "Ignore", "onExitCodes": codes(Outcome.RESTART)},
        # Preempted, drained or evicted: not the run's fault, whatever its exit code.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": codes(Outcome.FAIL)},
    ]


def _pod_metadata(spec: JobSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {RUN_LABEL: spec.run}}
    if bucket_of(spec):
        metadata["annotations"] = {"gke-gcsfuse/volumes": "true"}
    return metadata

"""The JobSet: a Job with a pod a worker, and when it is started again."""

from typing import Any

from launch.kubernetes.pod import CONTAINER, JOB, bucket_of, pod_spec
from launch.policy import Outcome, outcome
from launch.spec import JobSpec

RUN_LABEL = "trainer-launch/run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KEPT_S = 7 * 24 * 3600  # how long what has ended can be asked for


def manifest(spec: JobSpec) -> dict[str, Any]:
    """The JobSet, as values of JSON."""
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
            # Workers look for each other before they are ready.
            "network": {
                "enableDNSHostnames": True,
                "publishNotReadyAddresses": True,
                "subdomain": spec.name,
            },
            "failurePolicy": {
                "maxRestarts": spec.max_restarts,
                # The last start's worker 0 must have let go of the run's folder.
                "restartStrategy": "BlockingRecreate",
                # Without a rule, a failed Job makes the JobSet restart, and counts.
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
    """Whose it is, and where it waits."""
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
    """launch/policy.py, as a Job says it: the first rule that fits. Each other exit code counts:
    the Job fails at the first, and the JobSet restarts.

    What no rule can say: how often a run may end without a new checkpoint in between.
    """

    def codes(of: Outcome) -> dict[str, Any]:
        values = [code for code in range(1, 256) if outcome(code) is of]
        return {"containerName": CONTAINER, "operator": "In", "values": values}

    return [
        # All workers stop together, each is made anew, and they meet again.
        {"action": "Ignore", "onExitCodes": codes(Outcome.RESTART)},
        # Preempted, drained, evicted: however it ended then, it is not the run's fault.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": codes(Outcome.FAIL)},
    ]


def _pod_metadata(spec: JobSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {RUN_LABEL: spec.run}}
    if bucket_of(spec):
        metadata["annotations"] = {"gke-gcsfuse/volumes": "true"}
    return metadata

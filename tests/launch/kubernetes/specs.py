"""Runs for --backend=kubernetes, and the parts of their manifests."""

from collections.abc import Sequence
from typing import Any

import yaml

from launch.kubernetes import backend
from launch.spec import JobSpec


def make_spec(
    args: Sequence[str] = ("--strategy=multi_worker",),
    workdir: str = "",
    nodes: int = 2,
    env: Sequence[tuple[str, str]] = (),
    record_dir: str = "/records/digits",
    run: str = "RUN",
    **options: Any,
) -> JobSpec:
    return JobSpec(
        name="digits",
        run=run,
        backend="kubernetes",
        nodes=nodes,
        args=tuple(args),
        workdir=workdir,
        max_restarts=3,
        env=tuple(env),
        folder="/code",
        record_dir=record_dir,
        options=backend.Options(**({"volume_claim": "runs"} | options)),
    )


GPU = make_spec(
    ["--strategy=multi_worker", "--config=configs/imagenet_resnet50.py", "--set", "seed=1"],
    nodes=3,
    env=[("TFDS_DATA_DIR", "/runs/data"), ("NOTE", 'costs $5, "$(date)"')],
    namespace="research",
    context="gke_project_zone_cluster",
    image="europe-docker.pkg.dev/project/images/trainer:7",
    cpu="24",
    memory="96Gi",
    gpus=4,
    gpu_type="nvidia-l4",
    spot=True,
    image_pull_secret="registry",
    env_from_secret="tracking",
    queue="gpus",
    priority_class="low",
    node_selector=("disk=ssd",),
    toleration=("team=vision:NoSchedule", "dedicated"),
)
TPU = make_spec(
    ["--strategy=tpu", "--config=configs/imagenet_resnet50.py"],
    workdir="gs://a-bucket/runs/digits",
    nodes=1,
    volume_claim="",
    tpu_type="tpu-v5-lite-podslice",
    tpu_topology="2x4",
    service_account="trainer",
)
PLAIN = make_spec([], nodes=1)  # without trainer flags


def sent(spec: JobSpec) -> dict[str, Any]:
    """Returns the manifest, as PyYAML reads it."""
    [document] = backend.render(spec)
    return yaml.safe_load(document.text)


def inner(jobset: dict[str, Any]) -> dict[str, Any]:
    """Returns the Job's spec."""
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(jobset: dict[str, Any]) -> dict[str, Any]:
    return inner(jobset)["template"]["spec"]


def container(jobset: dict[str, Any]) -> dict[str, Any]:
    return pod(jobset)["containers"][0]

"""User errors are named before anything is sent."""

import pytest

from launch.errors import LaunchError
from launch.kubernetes import backend
from tests.launch.kubernetes.specs import make_spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"namespace": "A b"}, "--namespace=A b: must be a name of Kubernetes: lower-case"),
        ({"namespace": ""}, "--namespace=: must be"),
        ({"image": "x y"}, "--image=x y: must be the name of an image"),
        ({"image": "trainer:1\n"}, "--image=trainer:1\n: must be"),
        ({"cpu": "4 cores"}, "--cpu=4 cores: must be a number of cores"),
        ({"cpu": "0"}, "--cpu=0: must be"),
        ({"memory": "16GB"}, "--memory=16GB: must be a number of bytes, such as 16Gi"),
        ({"memory": "0Gi"}, "--memory=0Gi: must be"),
        ({"gpus": -1}, "--gpus=-1: must be at least 0"),
        ({"gpu_type": "nvidia-l4"}, "--gpu-type=nvidia-l4: needs the number of GPUs, --gpus"),
        ({"gpus": 1, "gpu_type": "a/b"}, "--gpu-type=a/b: must be the value of a node's label"),
        ({"volume_claim": "Runs"}, "--volume-claim=Runs: must be"),
        ({"service_account": "a_b"}, "--service-account=a_b: must be"),
        ({"image_pull_secret": "a b"}, "--image-pull-secret=a b: must be"),
        ({"env_from_secret": "$(x)"}, "--env-from-secret=$(x): must be"),
        ({"queue": "a.b"}, "--queue=a.b: must be"),
        ({"priority_class": "High!"}, "--priority-class=High!: must be"),
        ({"node_selector": ("disk",)}, "--node-selector=disk: must be a node's label"),
        ({"toleration": ("a=b:Never",)}, "--toleration=a=b:Never: must be a taint"),
        ({"context": "a;b"}, "--context=a;b: may contain only letters"),
        ({"port": 80}, "--port=80: must be 1024 to 65535"),
        ({"env": [("LAUNCH_RANK", "1")]}, "--env=LAUNCH_RANK=…: set by the launcher"),
        (
            {"volume_claim": ""},
            "--workdir=/runs/digits: would be lost with the pod; keep it in a volume",
        ),
        ({"workdir": "runs/x"}, "--workdir=runs/x: would be lost with the pod; use a folder in"),
        ({"workdir": "/runs"}, "--workdir=/runs: would be lost with the pod"),
        ({"workdir": "/runs/../etc"}, "--workdir=/runs/../etc: must not contain '..'"),
        ({"workdir": "gs://Bucket/x"}, "--workdir=gs://Bucket/x: must be gs://BUCKET/FOLDER"),
        ({"workdir": "gs://"}, "--workdir=gs://: must be gs://BUCKET/FOLDER"),
        ({"workdir": "s3://bucket/x"}, "--workdir=s3://bucket/x: must be gs://BUCKET/FOLDER or"),
        ({"tpu_topology": "2x4"}, "--tpu-topology=2x4: needs the kind of TPU, --tpu-type"),
        ({"tpu_type": "v5e", "tpu_topology": "2x4"}, "--tpu-type=v5e: unknown; one of tpu-v4-pod"),
        ({"tpu_type": "tpu-v6e-slice"}, "--tpu-topology=: must be one host's, 1x1 or"),
        (
            {"tpu_type": "tpu-v6e-slice", "tpu_topology": "4x4"},
            "--tpu-topology=4x4: must be one host's, 1x1 or 2x2 or 2x4 for tpu-v6e-slice; "
            "TPUs of several hosts need --backend=tpu-vm",
        ),
        (
            {"tpu_type": "tpu-v5p-slice", "tpu_topology": "2x2x1", "nodes": 2},
            "--nodes=2: must be 1 with --tpu-type; TPUs of several hosts need",
        ),
        (
            {
                "tpu_type": "tpu-v5p-slice",
                "tpu_topology": "2x2x1",
                "nodes": 1,
                "gpus": 1,
                "args": (),
            },
            "--gpus=1: a worker has GPUs or a TPU, not both; leave one out",
        ),
        (
            {"tpu_type": "tpu-v5p-slice", "tpu_topology": "2x2x1", "nodes": 1},
            "--strategy=multi_worker: leaves the TPU of --tpu-type idle",
        ),
    ],
)
def test_a_mistake_is_named(spec, message):
    with pytest.raises(LaunchError) as error:
        backend.check(make_spec(**spec))
    assert str(error.value).startswith(message)

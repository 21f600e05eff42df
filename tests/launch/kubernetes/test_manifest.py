"""The JobSet: its bytes, its schemas, and the restart policy."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import ValidationError

from launch import cli
from launch import spec as spec_lib
from launch.kubernetes import backend
from launch.kubernetes.pod import USER, workdir
from launch.policy import Outcome, outcome
from tests.launch.kubernetes.specs import GPU, PLAIN, TPU, container, inner, make_spec, pod, sent
from tests.launch.runs import ROOT, check_golden

# Its bytes.


@pytest.mark.parametrize(("name", "spec"), [("gpu", GPU), ("tpu", TPU), ("plain", PLAIN)])
def test_the_golden_file(name, spec):
    check_golden(f"kubernetes-{name}", backend.render(spec))


def test_a_dry_run_prints_it_and_starts_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no kubectl
    command = ["submit", "--backend=kubernetes", "--name=digits", "--nodes=2", "--max-restarts=3"]
    flags = [f"--folder={tmp_path}", "--volume-claim=runs", "--dry-run"]
    assert cli.main([*command, *flags, "--", "--strategy=multi_worker"]) == 0
    spec = make_spec(record_dir=str(tmp_path / "home" / "digits"))
    [document] = backend.render(dataclasses.replace(spec, folder=str(tmp_path)))
    assert capsys.readouterr().out == f"--- {document.title}\n{document.text}"
    assert not (tmp_path / "home").exists()


def test_a_dry_run_shows_no_secret(capsys, monkeypatch, tmp_path):
    command = ["submit", "--backend=kubernetes", "--name=digits", "--volume-claim=runs"]
    args = ["--set", "note=hf_" + "a" * 30]
    code = cli.main([*command, f"--folder={tmp_path}", "--dry-run", "--", *args])
    shown = capsys.readouterr()
    assert code == 2
    assert "aaaa" not in shown.out + shown.err


def test_a_spec_from_its_record_sends_the_same():
    values = json.loads(json.dumps(spec_lib.to_dict(GPU)))
    again = spec_lib.from_dict(values, backend.Options)
    assert backend.render(again) == backend.render(GPU)


# Schemas.


def schema_errors(jobset: dict[str, Any]) -> list[str]:
    """Returns the errors of the JobSet against its CRD's schema, of its Job against Kubernetes'
    schema, and of what the servers check beyond types."""
    return [*crd_errors(jobset), *job_errors(jobset), *admission_errors(jobset)]


def crd_errors(jobset: dict[str, Any]) -> list[str]:
    """The models drop unknown fields, so the result must equal the input."""
    try:
        model = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(jobset))
    except (ValidationError, KeyError, AttributeError, TypeError, ValueError) as error:
        return [f"CRD: {type(error).__name__}: {error}"]
    assert model is not None
    given, known = without_template(jobset), without_template(model.to_dict())
    return [] if given == known else [f"CRD: {given} is read as {known}"]


def without_template(jobset: dict[str, Any]) -> dict[str, Any]:
    """Returns the JobSet without the Job, which job_errors checks more strictly."""
    jobset = copy.deepcopy(jobset)
    for job in jobset.get("spec", {}).get("replicatedJobs") or []:
        job.pop("template", None)
    return jobset


def job_errors(jobset: dict[str, Any]) -> list[str]:
    try:
        template = jobset["spec"]["replicatedJobs"][0]["template"]
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "digits"}, **template}
        kubernetes_validate.validate(job, "1.32", strict=True)
        template = inner(jobset)["template"]
        one = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits"}}
        one["metadata"] |= template["metadata"]
        kubernetes_validate.validate(one | {"spec": template["spec"]}, "1.32", strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"Job: {'.'.join(map(str, error.path))}: {error.message}"]
    except (KeyError, TypeError, IndexError) as error:
        return [f"Job: {type(error).__name__}: {error}"]
    return []


_RULE_NAME = r"[A-Za-z]([\w,:]*\w)?"


def admission_errors(jobset: dict[str, Any]) -> list[str]:
    """Returns what no schema covers, but the webhooks of JobSet or the Job controller refuse, in
    part long after the JobSet was accepted."""
    errors = []
    try:
        failure, name = jobset["spec"]["failurePolicy"], jobset["metadata"]["name"]
        job, template = inner(jobset), pod(jobset)
        rules = job["podFailurePolicy"]["rules"]
        names = [rule.get("name", "") for rule in failure["rules"]]
        actions = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
        reasons = {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
        facts = {
            "with podFailurePolicy, Never": template["restartPolicy"] == "Never",
            "names of rules": all(re.fullmatch(_RULE_NAME, n, re.ASCII) for n in names),
            "names of rules are unique": len(set(names)) == len(names),
            "actions": all(rule["action"] in actions for rule in failure["rules"]),
            "reasons": all(reasons >= set(r["onJobFailureReasons"]) for r in failure["rules"]),
            "restartStrategy": failure["restartStrategy"] in ("Recreate", "BlockingRecreate"),
            "at most 20 rules": len(rules) <= 20,
            "actions of pods": all(r["action"] in ("Ignore", "FailJob", "Count") for r in rules),
            "one requirement": all(("onExitCodes" in r) != ("onPodConditions" in r) for r in rules),
            "a Job's index": job["completionMode"] == "Indexed"
            and job["completions"] == job["parallelism"],
            "a pod's name": len(f"{name}-worker-0-{job['completions'] - 1}-abcde") <= 63,
        }
        errors += [fact for fact, holds in facts.items() if not holds]
        containers = {c["name"] for c in template["containers"]}
        for codes in (rule["onExitCodes"] for rule in rules if "onExitCodes" in rule):
            values = codes["values"]
            if values != sorted(set(values)) or not 1 <= len(values) <= 255 or 0 in values:
                errors.append(f"exit codes {values}")
            if codes["containerName"] not in containers or codes["operator"] not in ("In", "NotIn"):
                errors.append(f"exit codes of {codes['containerName']}")
        volumes = {volume["name"] for volume in template["volumes"]}
        if {m["name"] for c in template["containers"] for m in c["volumeMounts"]} != volumes:
            errors.append("volumes")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        errors.append(f"{type(error).__name__}: {error}")
    return errors


@pytest.mark.parametrize("spec", [GPU, TPU, PLAIN], ids=["gpu", "tpu", "plain"])
def test_the_manifest_fits_the_schemas(spec):
    backend.check(spec)
    assert schema_errors(sent(spec)) == []


def test_the_longest_name_fits():
    spec = dataclasses.replace(make_spec(nodes=9999), name="n" * 40)
    backend.check(spec)
    assert schema_errors(sent(spec)) == []


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda part: part.__setitem__(new, part.pop(old))


@pytest.mark.parametrize(
    ("where", "change", "found"),
    [
        ((), rename("spec", "specs"), "CRD"),
        (("spec",), rename("failurePolicy", "failurePolicies"), "CRD"),
        (("spec",), rename("replicatedJobs", "replicatedJob"), "CRD"),
        (("spec", "network"), rename("subdomain", "subDomain"), "CRD"),
        (("spec", "network"), lambda part: part.update(enableDNSHostnames="yes"), "CRD"),
        (("spec",), lambda part: part.update(ttlSecondsAfterFinished="1"), "CRD"),
        (("spec", "failurePolicy"), lambda part: part.update(maxRestarts="3"), "CRD"),
        (("spec", "failurePolicy"), lambda part: part.update(restartStrategy="Slowly"), "restartS"),
        (("spec", "failurePolicy", "rules", 0), lambda part: part.pop("name"), "CRD"),
        (("spec", "failurePolicy", "rules", 0), lambda part: part.update(name="a-b"), "names"),
        (("spec", "failurePolicy", "rules", 0), lambda part: part.update(action="Fail"), "actions"),
        (("spec", "replicatedJobs", 0), lambda part: part.pop("name"), "CRD"),
        (("spec", "replicatedJobs", 0), lambda part: part.update(replicas="1"), "CRD"),
        (("job",), rename("backoffLimit", "backofLimit"), "Job"),
        (("job",), lambda part: part.update(completions="2"), "Job"),
        (("job",), lambda part: part.update(parallelism=1), "a Job's index"),
        (("job", "podFailurePolicy", "rules", 0), lambda part: part.pop("action"), "Job"),
        (("job", "podFailurePolicy", "rules", 1, "onPodConditions", 0), rename("type", "t"), "Job"),
        (
            ("job", "podFailurePolicy", "rules", 0, "onExitCodes"),
            lambda part: part.update(values=[143, 42]),
            "exit codes",
        ),
        (("pod",), lambda part: part.update(restartPolicy="OnFailure"), "Never"),
        (("pod",), lambda part: part.update(terminationGracePeriodSeconds="2 min"), "Job"),
        (("pod",), rename("nodeSelector", "nodeSelectors"), "Job"),
        (("pod", "containers", 0), rename("image", "picture"), "Job"),
        (("pod", "containers", 0), lambda part: part.pop("name"), "Job"),
        (("pod", "containers", 0), lambda part: part.update(args="-m trainer.main"), "Job"),
        (("pod", "containers", 0, "env", 0), lambda part: part.update(value=1), "Job"),
        (("pod", "containers", 0, "resources"), rename("limits", "limit"), "Job"),
        (("pod", "containers", 0, "securityContext"), rename("capabilities", "capability"), "Job"),
        (("pod", "volumes", 0), lambda part: part.update(name="other"), "volumes"),
    ],
)
def test_a_mistake_in_the_manifest_would_be_found(where, change, found):
    jobset = sent(GPU)
    part: Any = {"job": inner(jobset), "pod": pod(jobset), **jobset}
    for key in where:
        part = part[key]
    change(part if where else jobset)
    errors = schema_errors(jobset)
    assert any(found in error for error in errors), errors


# The policy.


def action(jobset: dict[str, Any], code: int, conditions: Sequence[str] = ()) -> Outcome:
    """Returns what happens if the first worker ends with this code: the first matching rule of
    the Job, then of the JobSet, according to their documentation."""
    if code == 0:
        return Outcome.DONE
    job = inner(jobset)
    reason = "BackoffLimitExceeded"
    assert job["backoffLimit"] == 0
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {}).get("values", [])
        types = [c["type"] for c in rule.get("onPodConditions", []) if c["status"] == "True"]
        if code in codes or set(types) & set(conditions):
            if rule["action"] == "Ignore":
                return Outcome.RESTART
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            assert rule["action"] == "FailJobSet"
            return Outcome.FAIL
    return Outcome.RESTART_CHARGED


def test_each_exit_code_follows_the_policy():
    jobset = sent(GPU)
    assert [action(jobset, code) for code in range(256)] == [outcome(c) for c in range(256)]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == GPU.max_restarts


def test_a_preempted_pod_is_not_charged_however_it_ended():
    jobset = sent(GPU)
    codes = range(1, 256)
    assert {action(jobset, code, ["DisruptionTarget"]) for code in codes} == {Outcome.RESTART}


def test_a_bucket_is_mounted_for_the_trainer():
    one = container(sent(TPU))
    assert {"name": "bucket", "mountPath": "/gcs/a-bucket"} in one["volumeMounts"]
    assert "--workdir=/gcs/a-bucket/runs/digits" in one["args"]
    assert one["resources"]["limits"]["google.com/tpu"] == "8"
    assert workdir(make_spec(workdir="gs://bucket")) == "/gcs/bucket/digits"


# The image.


def test_the_image_has_what_the_pod_starts():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    assert f"\nUSER {USER}:{USER}\n" in text
    assert re.search(r"apt-get install .* tini\b", text)
    assert "\nFROM python:3.11-slim\n" in text  # which requirements-tpu.txt was resolved for
    assert "--no-deps" in text
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert f"!{name.rstrip('/')}" in let_through
        assert list(ROOT.glob(name)), name

"""The start-up script of a TPU VM in a real bash, with stand-ins for the VM's programs."""

import dataclasses
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch import cli as cli_lib
from launch.errors import LaunchError
from launch.tpu import archive, request, startup
from tests.launch.tpu.fake_api import TOKEN, FakeCloud
from tests.launch.tpu.runs import record, spec, submit, watch

STUBS = {
    # Runs it in the foreground, with the tests' variables.
    "systemd-run": 'while [[ $1 == --* ]]; do [[ $1 == --setenv=* ]] && export "${1#--setenv=}"; '
    'shift; done; exec "$@"',
    "systemctl": "echo running",
    "apt-get": 'echo "apt-get $*" >>"$ROOT/installed"; exit "${APT_CODE-0}"',
    "mountpoint": "[[ -L $2 ]]",
    "gcsfuse": 'if [[ $1 == --version ]]; then echo "gcsfuse version 2.7.0 (Go)"; exit; fi\n'
    '[[ ${MOUNT_CODE-0} == 0 ]] || exit 1\nrmdir "${@: -1}"; ln -s "$OBJECTS" "${@: -1}"',
    "python3.11": 'mkdir -p "$3/bin"; cp "$STUBS/venv-python" "$3/bin/python"',
    "venv-python": """
case $1$2 in
  -mpip) echo "$*" >"$ROOT/pip"; exit "${PIP_CODE-0}" ;;
esac
printf '%s\\0' "$@" >"$ROOT/argv"
printf '%s\\0' "$PWD" >>"$ROOT/argv"
env -0 >"$ROOT/environment"
echo "hello from the trainer"
work=${@: -1}; work=${work#--workdir=}
mkdir -p "$work/checkpoints"
echo x >>"$ROOT/starts"
step=$(head -n 1 "$ROOT/steps"); sed -i 1d "$ROOT/steps"
case $step in
  done) echo "best accuracy 0.9" >"$work/DONE"; exit 0 ;;
  checkpoint) echo x >>"$work/checkpoints/checkpoint"; exit 42 ;;
  wait*) trap 'exit "${step#wait }"' TERM; touch "$ROOT/waits"; while true; do sleep 0.05; done ;;
  *) exit "${step:-99}" ;;
esac
""",
}


class Vm:
    """A machine's root folder, and a PATH of stand-ins."""

    def __init__(self, folder: Path, cloud: FakeCloud):
        self.root, self._cloud = folder / "root", cloud
        self.root.mkdir(parents=True)
        stubs = folder / "stubs"
        stubs.mkdir()
        for name, text in STUBS.items():
            (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
            (stubs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{stubs}:/usr/bin:/bin",
            "ROOT": str(self.root),
            "STUBS": str(stubs),
            "OBJECTS": str(cloud.objects),
            "METADATA_URL": f"{cloud.url}/computeMetadata/v1",
            "STORAGE_URL": cloud.url,
            "PAUSE_S": "0.1",
            "HOME": str(folder),
            "TF_CONFIG": "left over",
        }

    def script(self, script: str) -> Path:
        path = self.root.parent / "startup-script"
        path.write_text(script)
        return path

    def boot(self, script: str, *steps: str, **environment: str) -> None:
        """Runs the script; its trainer does these steps, one per start."""
        (self.root / "steps").write_text("\n".join(steps) + "\n")
        subprocess.run(
            ["bash", str(self.script(script))],
            env=self.environment | environment,
            check=False,
            timeout=60,
            capture_output=True,
        )

    @property
    def starts(self) -> int:
        path = self.root / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def argv(self) -> list[str]:
        return (self.root / "argv").read_bytes().decode().split("\0")[:-1]

    def environ(self) -> dict[str, str]:
        pairs = (self.root / "environment").read_bytes().decode().split("\0")[:-1]
        return dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture
def vm(cloud, tmp_path, folder) -> Vm:
    cloud.object("code/x.tar.gz").write_bytes(archive.pack(str(folder)))
    return Vm(tmp_path / "vm", cloud)


def script(*args: str, hosts: int = 1, **more) -> str:
    code = {"code": "gs://p-trainer/code/x.tar.gz"}
    fields = ("code", "code_ref", "code_sha256", "attempt")
    own = {name: more.pop(name) for name in fields if name in more}
    one = spec(*args, **more)
    return startup.render(
        dataclasses.replace(one, run="abc"),
        **({"attempt": 0, "node": "run", "hosts": hosts} | code | own),
        workdir=one.workdir or "gs://p-trainer/runs/run",
    )


def failed(cloud: FakeCloud) -> str:
    path = cloud.objects / "runs" / "run" / "FAILED"
    return path.read_text().splitlines()[0] if path.exists() else ""


def log(cloud: FakeCloud) -> str:
    return (cloud.objects / "runs" / "run" / "launch" / "0.log").read_text()


def test_bash_accepts_the_script(tmp_path):
    path = tmp_path / "script"
    path.write_text(script("it's", "$(x)\n"))
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_vm_trains(cloud, vm):
    vm.boot(script("--config=x"), "done")
    assert vm.argv() == [
        *("-m", "trainer.main", "--strategy=tpu", "--tpu=local", "--config=x"),
        f"--workdir={vm.root}/bucket/runs/run",
        f"{vm.root}/code",
    ]
    assert not [name for name in vm.environ() if "TPU" in name or "PJRT" in name]
    assert (failed(cloud), vm.starts) == ("", 1)
    assert "hello from the trainer" in log(cloud)
    assert set(cloud.tokens) == {f"Bearer {TOKEN}"}
    assert (
        " --no-deps " in (vm.root / "pip").read_text()
    )  # otherwise plain TensorFlow overwrites it


def test_a_second_boot_after_the_end_does_nothing(cloud, vm):
    for step in ("done", "3"):
        vm.boot(script("--x"), step)
        starts = vm.starts
        vm.boot(script("--x"), "done")
        assert vm.starts == starts
        (cloud.objects / "runs/run/DONE").unlink(missing_ok=True)


def test_a_second_boot_before_the_end_resumes(cloud, vm):
    vm.boot(script("--x"), "137")
    (cloud.objects / "runs/run/FAILED").unlink()
    (vm.root / "bucket").unlink()  # a mount does not outlive the boot
    vm.boot(script("--x"), "done", PIP_CODE="1")  # the environment is there already
    assert (vm.starts, failed(cloud)) == (2, "")


def test_the_failure_of_an_earlier_start_is_ignored(cloud, vm):
    vm.boot(script("--x"), "3")
    vm.boot(script("--x", attempt=1), "done")
    assert vm.starts == 2


@pytest.mark.parametrize("code", [1, 2, 43, 137])
def test_a_failure_is_recorded(cloud, vm, code):
    vm.boot(script("--x"), str(code))
    assert failed(cloud) == f"FAILED {code}"
    assert (vm.starts, f"ended with {code}" in log(cloud)) == (1, True)


def test_a_run_resumes_after_a_signal(cloud, vm):
    vm.boot(script("--x"), "checkpoint", "143", "42", "done")
    assert (vm.starts, failed(cloud)) == (4, "")


def test_with_progress_restarts_are_unlimited(cloud, vm):
    vm.boot(script("--x"), *["checkpoint"] * 7, "done")
    assert (vm.starts, failed(cloud)) == (8, "")


def test_ends_without_progress_become_a_failure(cloud, vm):
    vm.boot(script("--x"), *["42"] * 9)
    assert (vm.starts, failed(cloud)) == (5, "FAILED 42")


def test_an_end_without_a_result_is_a_failure(cloud, vm):
    vm.boot(script("--x"), "0")
    assert failed(cloud) == "FAILED 1"


@pytest.mark.parametrize("code", [42, 143, 1])
def test_sigterm_is_passed_on(cloud, vm, code):
    """The run has not ended, whatever the trainer's exit code is."""
    (vm.root / "steps").write_text(f"wait {code}\ndone\n")
    path = vm.script(script("--x"))
    process = subprocess.Popen(["bash", str(path)], env=vm.environment)
    while not (vm.root / "waits").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert (vm.starts, failed(cloud)) == (1, "")
    assert f"the trainer ended with {code}" in log(cloud)


@pytest.mark.parametrize(
    ("more", "environment", "first", "why"),
    [
        ({}, {"PIP_CODE": "1"}, "FAILED 201", "cannot install requirements-tpu.txt"),
        ({}, {"MOUNT_CODE": "1"}, "FAILED 201", "cannot mount"),
        ({"code": "gs://p-trainer/no.tar.gz"}, {}, "FAILED 201", "cannot fetch"),
        ({"code_sha256": "0" * 64}, {}, "FAILED 201", "differs from what was uploaded"),
        ({"code": "/no/where", "code_ref": "v1"}, {}, "FAILED 201", "cannot clone"),
    ],
)
def test_a_setup_that_fails_is_recorded(cloud, vm, more, environment, first, why):
    vm.boot(script("--x", **more), "done", **environment)
    assert (vm.starts, failed(cloud)) == (0, first)
    assert why in log(cloud)


def test_code_from_git(cloud, vm, folder):
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*git, "branch", "topic"], check=True)
    vm.boot(script("--x", code=str(folder), code_ref="topic"), "done")
    assert (vm.starts, failed(cloud)) == (1, "")
    assert (vm.root / "code" / "trainer" / "main.py").exists()


def test_a_missing_git_ref(cloud, vm, folder):
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    vm.boot(script("--x", code=str(folder), code_ref="nowhere"), "done")
    assert failed(cloud) == "FAILED 2"


def test_a_slice_is_run_by_its_worker_0(cloud, vm):
    cloud.worker_number = "1"
    vm.boot(script("--x", hosts=4), "done")
    assert (vm.starts, failed(cloud)) == (0, "")
    cloud.worker_number = "0"
    vm.boot(script("--x", hosts=4), "done")
    assert vm.starts == 1
    assert vm.argv()[2:4] == ["--strategy=tpu", "--tpu=run"]


def test_a_worker_that_does_not_know_its_number_reports_it(cloud, vm):
    cloud.worker_number = ""
    vm.boot(script("--x", hosts=4), "done")
    assert (vm.starts, failed(cloud)) == (0, "FAILED 201")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
HOSTILE = st.one_of(
    TEXT, st.sampled_from(["$(exit 9)", "`x`", "a b", "'", '"', "\\", "\n", "-x\n", "*", "!!", "é"])
)
PART = HOSTILE.map(lambda s: "".join(c for c in s if ord(c) >= 32 and c not in "/~")).filter(
    lambda s: s.strip(".") and len(s.encode()) < 100
)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    args=st.lists(HOSTILE.map(lambda s: f"--x={s}") | HOSTILE.filter(lambda s: s), max_size=4),
    value=HOSTILE,
    part=PART,
)
def test_any_arguments_arrive_unchanged(cloud, vm, args, value, part):
    args = [arg for arg in args if not arg.startswith(("--strategy", "-strategy"))]
    workdir = f"gs://p-trainer/runs/{part}"
    try:
        one = spec(*args, "--y", workdir=workdir, env=[("VALUE", value)])
        request.check(one)
    except LaunchError as error:  # it looks like a secret
        assert "secret" in str(error)
        return
    vm.boot(script(*args, "--y", workdir=workdir, env=[("VALUE", value)]), "done")
    assert vm.argv()[2:-1] == [
        *("--strategy=tpu", "--tpu=local", *args, "--y"),
        f"--workdir={vm.root}/bucket/runs/{part}",
    ]
    assert vm.environ()["VALUE"] == value
    assert (cloud.objects / "runs" / part / "launch" / "0.log").exists()
    (cloud.objects / "runs" / part / "DONE").unlink()


def test_from_submit_to_done_with_the_script_itself(cloud, vm, folder, capsys):
    """The request's own script runs on the VM; the second start resumes the first."""
    cloud.plans = [("ACTIVE", "SUSPENDED"), ("ACTIVE", "ACTIVE")]
    steps = iter([["checkpoint", "137"], ["done"]])

    def boot(node) -> None:
        cloud._lock.release()  # the VM sends requests to the same server
        try:
            vm.boot(node["metadata"]["startup-script"], *next(steps))
        finally:
            cloud._lock.acquire()

    cloud.on_active = boot
    assert submit(f"--folder={folder}", code="") == 0
    assert watch() == 0
    assert (vm.starts, record().restarts.charged) == (3, 1)
    capsys.readouterr()
    cli_lib.main(["logs", "run"])
    assert capsys.readouterr().out.count("hello from the trainer") == 3

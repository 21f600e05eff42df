"""Arguments reach the trainer unchanged: through YAML, Kubernetes' expansion of $(NAME), and the
shell that a TPU needs."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.kubernetes import backend
from launch.kubernetes.manifest import manifest
from launch.kubernetes.pod import INDEX
from launch.kubernetes.yaml_text import to_yaml
from launch.spec import JobSpec
from tests.launch.kubernetes.specs import GPU, TPU, container, make_spec, sent


def expanded(text: str, variables: dict[str, str]) -> str:
    """Expands a text as Kubernetes does in command, args and env: $(NAME) becomes the variable's
    value if there is one, and stays otherwise; $$ becomes $."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # from the documentation of the field `args`, and a combination
        ("$(A)", "a"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$(B)", "$(B)"),
        ("$A $ $", "$A $ $"),
        ("$(A", "$(A"),
    ],
)
def test_the_model_of_expansion(text, expected):
    assert expanded(text, {"A": "a"}) == expected


def started(jobset: dict[str, Any], rank: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Runs the container's command with stand-ins for tini and python.

    Returns:
        The arguments of python, and its environment.
    """
    what = container(jobset)
    environment: dict[str, str] = {}
    annotations = {INDEX: str(rank)}
    for variable in what["env"]:
        if "value" in variable:
            value = expanded(variable["value"], environment)
        else:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            value = annotations[path.removeprefix("metadata.annotations['").removesuffix("']")]
        environment[variable["name"]] = value
    words = [expanded(word, environment) for word in [*what["command"], *what["args"]]]
    out = folder / "out.json"
    whole = environment | {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(out)}
    no_limit = {"BASH_FUNC_ulimit%%": "() { true; }"}  # a container's root may raise it
    subprocess.run(words, env=whole | no_limit, check=True)
    seen = json.loads(out.read_text(encoding="utf-8"))
    return seen["argv"], {name: seen["env"][name] for name in environment}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder for PATH: `tini -- COMMAND` runs COMMAND; `python` writes its input to $OUT."""
    folder = tmp_path_factory.mktemp("bin")
    write = (
        "import json, os, sys\n"
        "seen = {'argv': sys.argv[1:], 'env': dict(os.environ)}\n"
        "open(os.environ['OUT'], 'w', encoding='utf-8').write(json.dumps(seen))\n"
    )
    bash = shutil.which("bash")  # sh would drop `started`'s function
    (folder / "tini").write_text(f'#!{bash}\n[ "$1" = -- ] && shift && exec "$@"\n')
    (folder / "python").write_text(f"#!{sys.executable} -SEs\n{write}")
    for name in ("tini", "python"):
        (folder / name).chmod(0o755)
    return folder


HOSTILE = st.text(
    st.one_of(
        st.sampled_from("$(){}\"'\\`\n\t\r #:-&*!|>%@[],?~"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=12,
)
WORDS = [
    *("$(date)", "$(LAUNCH_RANK)", "$$(X)", "$$", "$", "$(A", "`date`", "a b", "'", '"', "\\"),
    *("1e3", "y", "Y", "n", "No", "0x1F", "0o7", "08", "null", "~", "", "2026-11-24", "1_000"),
    *(".5", "true", "OFF", "-", "- a", "a: b", "#", " # a", "&a", "*a", "!a", "|", ">", "%", "@"),
    *("?", "\n", "a\n", "\ta", "é", "\u2028", "\x85", "\ufeff", "\x07", "\x7f", "😀", "<<", "="),
    *("1:30", ".inf", ".nan", "+1", "0b1", "[]", "{}", "---", "...", "%YAML"),
]


def hostile_spec(
    args: Sequence[str], values: Sequence[str], folder: str, nodes: int = 2
) -> JobSpec:
    return make_spec(
        ["--strategy=multi_worker", *args],
        workdir=f"/runs/x{folder.replace('..', '')}",
        nodes=nodes,
        env=[(f"V{i}", value) for i, value in enumerate(values)],
    )


def arrives(spec: JobSpec, jobset: dict[str, Any], folder: Path) -> None:
    rank = spec.nodes - 1
    argv, env = started(jobset, rank, folder)
    assert argv == [*spec.trainer_args(spec.workdir), "--cluster_timeout_s=600"]
    assert {name: env[name] for name, _ in spec.env} == dict(spec.env)
    config = json.loads(env["TF_CONFIG"])
    assert config["task"] == {"type": "worker", "index": rank}
    assert len(config["cluster"]["worker"]) == spec.nodes


def test_hostile_words_arrive_unchanged(stand_ins):
    spec = hostile_spec(WORDS, WORDS, "".join(WORDS))
    backend.check(spec)
    arrives(spec, sent(spec), stand_ins)


@settings(max_examples=30, deadline=None)  # each starts a process
@given(
    args=st.lists(HOSTILE, max_size=4),
    values=st.lists(HOSTILE, max_size=3),
    folder=HOSTILE,
    nodes=st.integers(1, 5),
)
def test_any_arguments_arrive_unchanged(stand_ins, args, values, folder, nodes):
    spec = hostile_spec([f"--set=note={arg}" for arg in args], values, folder, nodes)
    arrives(spec, sent(spec), stand_ins)


def test_hostile_words_arrive_on_a_tpu_too(stand_ins):
    spec = dataclasses.replace(TPU, args=("--strategy=tpu", *WORDS))
    argv, env = started(sent(spec), 0, stand_ins)
    module, name, *rest = spec.trainer_args("/gcs/a-bucket/runs/digits")
    assert argv == [module, name, "--tpu=local", *rest]
    assert not [name for name in env if "TPU" in name or "PJRT" in name]


def test_the_users_cluster_timeout_stays():
    spec = make_spec(["--strategy=multi_worker", "--cluster_timeout_s=5"])
    assert [arg for arg in container(sent(spec))["args"] if "timeout" in arg] == [spec.args[1]]


def test_a_single_worker_has_no_tf_config():
    spec = make_spec(["--strategy=mirrored"], nodes=1)
    one = container(sent(spec))
    assert {variable["name"] for variable in one["env"]} == {"PYTHONUNBUFFERED"}
    assert "ports" not in one


@pytest.mark.parametrize("word", WORDS)
def test_every_yaml_reader_reads_text_as_text(word):
    text = to_yaml({"key": word})
    assert yaml.safe_load(text) == {"key": word}
    assert yaml.load(text, yaml.BaseLoader) == {
        "key": word
    }  # resolves no types: every value is text
    assert text[5] in "\"'", text


def read_by_kubectl(text: str) -> dict[str, Any]:
    """Returns what the real kubectl reads, in Go, without a cluster."""
    command = ["kubectl", "annotate", "--local", "--filename=-", "read=yes", "--output=json"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    value = json.loads(done.stdout)
    del value["metadata"]["annotations"]
    return value


needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl"), reason="reads YAML with the real kubectl, which is not installed"
)


@needs_kubectl
@pytest.mark.parametrize("spec", [GPU, TPU, hostile_spec(WORDS, WORDS, "".join(WORDS))])
def test_kubectl_reads_the_same_manifest(spec):
    [document] = backend.render(spec)
    assert read_by_kubectl(document.text) == manifest(spec)


@needs_kubectl
@settings(max_examples=30, deadline=None)  # each starts a process
@given(st.lists(HOSTILE, min_size=1, max_size=20))
def test_kubectl_reads_any_arguments(args):
    spec = make_spec(["--strategy=multi_worker", *args])
    [document] = backend.render(spec)
    assert read_by_kubectl(document.text) == manifest(spec)

"""Valid specs, and refusals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import local
from launch import spec as spec_lib
from launch.errors import LaunchError, redacted
from tests.launch.specs import spec


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "Digits"}, "--name=Digits: must be at most 40 lower-case letters"),
        ({"name": "a" * 41}, f"--name={'a' * 41}: must be at most 40 lower-case letters"),
        ({"name": "a-"}, "--name=a-: must be"),
        ({"name": ""}, "--name=: must be"),
        ({"name": "../x"}, "--name=../x: must be"),
        ({"nodes": 0}, "--nodes=0: must be at least 1"),
        ({"max_restarts": -1}, "--max-restarts=-1: must be at least 0"),
        ({"env": (("a b", "c"),)}, "--env=a b=…: must be NAME=VALUE"),
        ({"env": (("TF_CONFIG", "{}"),)}, "--env=TF_CONFIG=…: set by the launcher"),
        ({"args": ("a\0b",)}, r"'a\x00b': contains a zero byte"),
        ({"args": ("a\udc80",)}, r"'a\udc80': not valid UTF-8"),
        ({"args": ("--strategy=mirrored",)}, "--nodes=2: --strategy=mirrored runs in one process"),
        ({"args": ("--strategy", "tpu")}, "--nodes=2: --strategy=tpu runs in one process"),
        ({"args": ("--api_key=abc",)}, "--api_key=…: looks like a secret"),
        ({"args": ("--token", "abc")}, "--token=…: looks like a secret"),
        ({"args": ("--set", "x.token=hunter2")}, "x.token=…: looks like a secret"),
        ({"args": ("--set=x.password=hunter2",)}, "--set=x.password=…: looks like a secret"),
        ({"env": (("PGPASSWORD", "x"),)}, "--env=PGPASSWORD=…: looks like a secret"),
        ({"options": local.Options("https://u:p@ss@h")}, "--python=…: looks like a secret"),
        ({"env": (("LAUNCH_HOME", "x"),)}, "--env=LAUNCH_HOME=…: set by the launcher"),
        ({"args": ("--a", "--", "--b")}, "--: not a flag of the trainer"),
        ({"args": ("--x=ghp_0123456789abcdefghijABCDEFGHIJ",)}, "--x=…: looks like a secret"),
        ({"env": (("WANDB_API_KEY", "x"),)}, "--env=WANDB_API_KEY=…: looks like a secret"),
        ({"env": (("A", "https://me:pw@host/x"),)}, "--env=A=…: looks like a secret"),
    ],
)
def test_an_invalid_spec_is_named(values, expected):
    with pytest.raises(LaunchError) as caught:
        spec(**values)
    assert str(caught.value).startswith(expected)


def test_text_that_only_resembles_a_secret_is_allowed():
    args = ("--max_tokens=3", "--set=monkey=1", "--keyboard=x", "--config=my keys/a.py")
    assert spec(args=args, nodes=1).args == args


def test_secrets_are_not_shown():
    for secret in ("ya29.abc-DEF", "Bearer abc.def", "hf_abcdefghijklmnopqrstuvwx"):
        assert redacted(f"a {secret} b") == "a [secret] b"
    assert redacted("https://me:pass@host/x") == "https://[secret]@host/x"


def test_the_workdir_is_found_anywhere_among_the_flags():
    split = spec_lib.split_workdir
    assert split(["--a", "--workdir=x y", "b"]) == (("--a", "b"), "x y")
    assert split(["--workdir", "x", "--b"]) == (("--b",), "x")
    assert split(["--workdir=x", "-workdir=y"]) == ((), "y")  # the last one counts, as in absl
    for empty in (["--workdir="], ["--workdir"]):
        with pytest.raises(LaunchError, match="--workdir=: must name a folder"):
            split(empty)


_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(_texts, max_size=4), _texts, st.dictionaries(st.from_regex(r"\AX[A-Z]{1,8}\Z"), _texts)
)
def test_a_spec_survives_json(args, folder, env):
    try:
        one = spec(args=tuple(args), folder=folder, env=tuple(env.items()), nodes=1)
    except LaunchError:  # it looks like a secret
        return
    text = json.dumps(spec_lib.to_dict(one))
    assert spec_lib.from_dict(json.loads(text), local.Options) == one

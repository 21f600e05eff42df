"""What `--strategy=tpu` does before and while TensorFlow meets a TPU. There is none here.

Packages, chips, hosts and Google's servers are stand-ins: folders that pip could have written, a
file in place of a chip, sockets of this machine, and the servers of tests/launch/tpu/fake_api.py.
Where something is trained, MirroredStrategy on logical CPU devices stands in for TPUStrategy.
"""

import dataclasses
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_model, with_optimizer
from tests.launch.tpu.fake_api import FakeCloud
from tests.test_main import only_line, run_main
from trainer.devices import strategy as strategy_lib
from trainer.devices import tpu
from trainer.errors import GroupError, UserError
from trainer.failures import lost_peers_reported
from trainer.run import train
from trainer.run.folder import RunFolder
from trainer.run.log import read_records
from trainer.step import build

LIBTPU = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


# --- the environment --------------------------------------------------------------------------


def test_the_name_is_the_flag_or_the_environment():
    assert tpu.name_of("", {}) == ""
    assert tpu.name_of("a", {}) == tpu.name_of("", {"TPU_NAME": "a"}) == "a"
    assert tpu.name_of("a", {"TPU_NAME": "a"}) == "a"
    with pytest.raises(UserError, match=r"--tpu=local: TPU_NAME names another TPU, a; unset it"):
        tpu.name_of("local", {"TPU_NAME": "a"})


def test_the_environment_of_chips_of_this_machine(packages):
    library = str(packages() / "libtpu" / "libtpu.so")
    right = {
        "TPU_NAME": "local",
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
        LIBTPU: library,
    }
    assert tpu.environment("local", {}) == right
    assert tpu.environment("local", right) == right
    assert "libtpu" not in sys.modules  # found, not imported


def test_the_environment_of_a_slice():
    assert tpu.environment("a", {"PATH": "x"}) == {"TPU_NAME": "a", "TPU_LOAD_LIBRARY": "0"}


def test_what_is_set_already_stays(tmp_path):
    own = tmp_path / "libtpu.so"
    own.touch()
    given = {LIBTPU: str(own), "NEXT_PLUGGABLE_DEVICE_USE_C_API": "1", "TPU_LOAD_LIBRARY": "1"}
    found = given | tpu.environment("local", given)
    assert {name: found[name] for name in given} == given


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("local", "TPU_LOAD_LIBRARY", "0"),
        ("local", "PJRT_DEVICE", "CPU"),
        ("local", "NEXT_PLUGGABLE_DEVICE_USE_C_API", "false"),
        ("a", "TPU_LOAD_LIBRARY", "1"),
        ("a", LIBTPU, "/lib/libtpu.so"),
    ],
)
def test_a_contradiction_is_refused(name, variable, value):
    with pytest.raises(UserError) as error:
        tpu.environment(name, {variable: value})
    assert message(error).startswith(f"--tpu={name}: contradicts {variable}={value}, which ")


def test_a_library_that_is_not_there():
    with pytest.raises(UserError, match=rf"^{LIBTPU}=/nowhere/libtpu.so: is not a file; unset it"):
        tpu.environment("local", {LIBTPU: "/nowhere/libtpu.so"})


# --- packages, chips and the import, for chips of this machine --------------------------------


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Makes packages that this process, and others by PYTHONPATH, find. Beside those that are named
    is a plain tensorflow."""

    def make(tensorflow="2.20.0", libtpu="0.0.29", body="", written_over=False) -> Path:
        folder = tmp_path / "packages"
        (folder / "tensorflow").mkdir(parents=True)
        (folder / "tensorflow" / "__init__.py").write_text(body)
        size = 5 if written_over else 7
        (folder / "tensorflow" / "libtensorflow_cc.so.2").write_bytes(b"x" * size)
        if libtpu:
            (folder / "libtpu").mkdir()
            (folder / "libtpu" / "__init__.py").write_text("raise ImportError('not needed')")
            (folder / "libtpu" / "libtpu.so").touch()
        versions = {"tensorflow": "2.21.0", "tensorflow_tpu": tensorflow, "libtpu": libtpu}
        for name, version in versions.items():
            info = folder / f"{name}-{version}.dist-info"
            if version:
                info.mkdir()
                (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
                (info / "RECORD").write_text("tensorflow/libtensorflow_cc.so.2,sha256=x,7\n")
        # In place of what is installed here: that may be any of these.
        others = [entry for entry in sys.path if not entry.endswith("site-packages")]
        monkeypatch.setattr(sys, "path", [str(folder), *others])
        return folder

    return make


@pytest.fixture
def chip(tmp_path, monkeypatch) -> Path:
    """A file in place of a chip's device."""
    monkeypatch.setattr(tpu, "_CHIPS", (str(tmp_path / "accel[0-9]*"),))
    path = tmp_path / "accel0"
    path.touch()
    return path


def prepare_local(folder: Path, **environ: str) -> dict[str, str]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environ}
    assert tpu.prepare("local", environ) == "local"
    return environ


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize(
    ("installed", "parts"),
    [
        (
            {"tensorflow": ""},
            ["tensorflow 2.21.0 is installed", "only tensorflow-tpu supports TPUs"],
        ),
        ({"libtpu": ""}, ["libtpu", "is not installed"]),
        ({"libtpu": "0.0.32"}, ["libtpu 0.0.32", "TensorFlow 2.20.0", "from 0.0.32 on"]),
        ({"libtpu": "0.0.100"}, ["libtpu 0.0.100", "TensorFlow 2.20.0"]),
        (
            {"written_over": True},
            ["overwrote tensorflow-tpu 2.20.0", "create the environment again"],
        ),
    ],
    ids=["plain TensorFlow", "no libtpu", "libtpu too new", "much too new", "written over"],
)
def test_a_wrong_package_is_told_without_importing_it(packages, installed, parts):
    folder = packages(**installed)
    with pytest.raises(UserError) as error:
        prepare_local(folder)
    text = message(error)
    assert [part for part in [*parts, "requirements-tpu.txt"] if part not in text] == []


def test_the_pinned_libtpu_is_none_that_aborts():
    """requirements-tpu.txt against the table of what was seen."""
    lines = (Path(__file__).parents[2] / "requirements-tpu.txt").read_text().splitlines()
    pins = dict(line.split()[0].split("==") for line in lines if "==" in line and line[0] != "#")
    first = tpu._ABORTS_FROM[tpu._minor(pins["tensorflow-tpu"])]
    assert tpu._numbers(pins["libtpu"]) < tpu._numbers(first)
    assert "tensorflow" not in pins  # it would lie over tensorflow-tpu
    assert tpu._numbers("0.0.31") < tpu._numbers("0.0.32") <= tpu._numbers("0.0.32.1")


def test_a_machine_without_chips(packages, chip):
    chip.unlink()
    with pytest.raises(UserError) as error:
        prepare_local(packages())
    assert message(error).startswith("--tpu=local: this machine has no TPU (")


def test_a_process_that_holds_the_chip_is_named(packages, chip):
    folder = packages(body="")
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(chip)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError) as error:
            prepare_local(folder)
        assert f"process {other.pid} (python" in message(error)
        prepare_local(folder, TPU_VISIBLE_CHIPS="0")  # shared out on purpose
        other.communicate()
    with open(chip):
        prepare_local(folder)  # it is our own


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("import os; os.abort()", ["TensorFlow 2.20.0 with libtpu 0.0.29", "ends", "SIGABRT"]),
        ("raise ImportError('first\\nlast line')", ["importing it fails (last line)"]),
        ("import threading; threading.Event().wait()", ["more than 0.5 s", "metadata server"]),
    ],
    ids=["aborts", "raises", "does not end"],
)
def test_an_import_that_would_end_this_process_ends_another(packages, monkeypatch, body, parts):
    if "wait" in body:
        monkeypatch.setattr(tpu, "_IMPORT_S", 0.5)
    with pytest.raises(UserError) as error:
        prepare_local(packages(body=body))
    text = message(error)
    assert [part for part in parts if part not in text] == []


@pytest.mark.usefixtures("chip")
def test_the_import_that_is_tried_has_the_environment_of_the_real_one(packages, tmp_path):
    body = f"import os, json; json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))"
    environ = prepare_local(packages(body=body), TF_CONFIG="left over")
    assert "TF_CONFIG" not in environ
    seen = (tmp_path / "env").read_text()
    for name in ("TPU_NAME", "PJRT_DEVICE", LIBTPU):
        assert f'"{name}": "{environ[name]}"' in seen
    assert "TF_CONFIG" not in seen


# --- the hosts of a slice ---------------------------------------------------------------------


@pytest.fixture
def host():
    """An address that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def google(tmp_path, monkeypatch):
    """Google's servers, as a VM without an account of its own sees them."""
    cloud_tpu_client = pytest.importorskip("cloud_tpu_client")
    from google.auth.credentials import AnonymousCredentials
    from oauth2client.client import GoogleCredentials

    fake = FakeCloud(tmp_path / "objects", "p-trainer")
    monkeypatch.setattr(cloud_tpu_client.client, "_GCE_METADATA_ENDPOINT", fake.url)
    monkeypatch.setenv("TPU_API_DISCOVERY_URL", fake.url + "/discovery/{api}/{apiVersion}")
    monkeypatch.setattr(GoogleCredentials, "get_application_default", AnonymousCredentials)
    yield fake
    fake.close()


def node(*hosts: str, state: str = "READY", version: str = f"tpu-vm-tf-{tf.__version__}-pod-pjrt"):
    ends = [dict(zip(("ipAddress", "port"), host.split(":"), strict=True)) for host in hosts]
    return {"state": state, "networkEndpoints": ends, "tensorflowVersion": version}


def test_a_name_becomes_the_addresses_of_its_hosts(google, host):
    google.nodes["a"] = node(host, host)
    environ = {"TF_CONFIG": "left over"}
    assert tpu.prepare("a", environ) == f"grpc://{host},{host}"
    assert environ == {"TPU_NAME": "a", "TPU_LOAD_LIBRARY": "0"}
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=f"grpc://{host},{host}")
    assert resolver.cluster_spec().as_dict() == {"worker": [host, host]}


@pytest.mark.parametrize(
    ("nodes", "parts"),
    [
        ({}, ["ValueError", "'a'"]),
        ({"a": node("127.0.0.1:1", state="CREATING")}, ["not yet ready", "CREATING"]),
    ],
    ids=["unknown", "not ready"],
)
def test_a_name_that_leads_nowhere(google, nodes, parts):
    google.nodes |= nodes
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    text = message(error)
    assert text.startswith("--tpu=a: cannot be looked up (")
    assert [part for part in parts if part not in text] == []


def test_servers_that_say_nothing_do_not_hang(google, host, monkeypatch):
    cloud_tpu_client = pytest.importorskip("cloud_tpu_client")
    monkeypatch.setattr(tpu, "_LOOK_UP_S", 0.2)
    for silent in (f"http://{host}", google.url):  # the metadata server, then the API
        monkeypatch.setattr(cloud_tpu_client.client, "_GCE_METADATA_ENDPOINT", silent)
        google.hangs.set()
        with pytest.raises(UserError) as error:
            tpu.prepare("a", {})
        assert "timed out" in message(error)
    assert socket.getdefaulttimeout() is None


def test_without_credentials_a_line_says_so(google, monkeypatch):
    from oauth2client.client import ApplicationDefaultCredentialsError, GoogleCredentials

    def none():
        raise ApplicationDefaultCredentialsError("The Application Default Credentials\nare not")

    google.nodes["a"] = node("127.0.0.1:1")
    monkeypatch.setattr(GoogleCredentials, "get_application_default", none)
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    assert "ApplicationDefaultCredentialsError: The Application Default" in message(error)


@pytest.mark.parametrize(
    ("runtime", "refused"),
    [
        ("tpu-vm-tf-2.16.1-pod-pjrt", True),
        ("2.12", True),
        ("tpu-vm-tf-2.20.3-pod-pjrt", False),
        ("2.20.0", False),
        ("v2-alpha-tpuv5-lite", False),  # says nothing of TensorFlow
        ("", False),
    ],
)
def test_another_version_of_tensorflow_there(google, packages, host, runtime, refused):
    packages(tensorflow="2.20.0")
    google.nodes["a"] = node(host, version=runtime)
    if not refused:
        assert tpu.prepare("a", {}) == f"grpc://{host}"
        return
    with pytest.raises(UserError) as error:
        tpu.prepare("a", {})
    text = message(error)
    assert f"({runtime}), this machine 2.20.0; create" in text


def test_a_host_that_does_not_answer_is_named(host, monkeypatch):
    """TensorFlow would try for ever."""
    monkeypatch.setattr(tpu, "_REACH_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(GroupError) as error:
        tpu.prepare(f"grpc://{host},127.0.0.1:{port}", {})
    assert f"no TensorFlow answers at 127.0.0.1:{port} (Connection refused)" in message(error)


@pytest.mark.parametrize("address", ["grpc://a:b", "grpc://127.0.0.1:"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match=r"is not HOST:PORT"):
        tpu.prepare(address, {})


def test_an_address_without_a_port_has_the_usual_one():
    assert tpu._look_up("grpc://1.2.3.4,grpc://b:5") == (["1.2.3.4:8470", "b:5"], "")


# --- the command ------------------------------------------------------------------------------


def test_on_this_machine_it_is_refused_in_a_line(tmp_path, monkeypatch):
    """Without TensorFlow's import: plain TensorFlow is installed here, or tensorflow-tpu and there
    is no TPU."""
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)  # of make test-tf220
    result = run_main("--strategy=tpu", "--tpu=local", f"--workdir={tmp_path / 'run'}")
    plain = f"--tpu=local: tensorflow {tf.__version__} is installed, but only tensorflow-tpu"
    assert only_line(result).startswith((plain, "--tpu=local: this machine has no TPU"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


# --- TensorFlow and its TPU -------------------------------------------------------------------


class StandIn(tf.distribute.MirroredStrategy):
    """In TPUStrategy's place, over two of the CPU devices of tests/conftest.py."""

    def __init__(self, resolver):
        assert resolver.master() == ""  # of this machine
        tf.distribute.MirroredStrategy._collective_key_base = 900_000  # as conftest.strategy_of
        super().__init__(["/CPU:0", "/CPU:1"])
        self.extended.num_hosts = 1


@pytest.fixture
def machine(monkeypatch) -> list[Exception]:
    """A machine with a TPU of two cores, as far as strategy.py asks. What is put into the list is
    raised where the TPU is initialised."""
    raises: list[Exception] = []

    def initialize(resolver):
        del resolver
        if raises:
            raise raises[0]

    real = tf.config.list_physical_devices
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["one"] if kind == "TPU" else real(kind)
    )
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", initialize)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", StandIn)
    return raises


@functools.cache
def stand_in() -> tf.distribute.Strategy:
    """One for all tests, as in conftest.strategy_of; made with the fixture `machine`."""
    return strategy_lib.create_strategy("tpu", "local", 0)


def test_no_tpu_is_initialised_where_tensorflow_sees_none():
    """With tensorflow-tpu it would end the process by SIGSEGV."""
    with pytest.raises(UserError) as error:
        strategy_lib.create_strategy("tpu", "local", 0)
    assert message(error).startswith("--tpu=local: TensorFlow sees no TPU")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            tf.errors.NotFoundError(
                None, None, "No OpKernel was registered to support Op 'ConfigureDistributedTPU'\nx"
            ),
            ["NotFoundError: No OpKernel", "must be tensorflow-tpu"],
        ),
        (
            tf.errors.NotFoundError(None, None, "… task:0/device:TPU_SYSTEM:0 unknown device."),
            ["must be tensorflow-tpu"],
        ),
        (
            tf.errors.NotFoundError(
                None,
                None,
                "'__inference__tpu_init_fn_4' is neither a type of a primitive operation nor a "
                "name of a function registered in binary running on n-3ea5ef93-w-0.",
            ),
            [f"a TensorFlow other than this machine's {tf.__version__}; the versions must be"],
        ),
        (
            tf.errors.InvalidArgumentError(
                None, None, "NodeDef expected inputs 'string' do not match 0 inputs specified"
            ),
            ["a TensorFlow other than"],
        ),
        (RuntimeError("TPU cores on each host is not same."), ["RuntimeError: TPU cores"]),
    ],
    ids=["plain TensorFlow", "no TPU there", "another version", "another signature", "other"],
)
def test_a_tpu_that_cannot_be_initialised(machine, error, parts):
    machine.append(error)
    with pytest.raises(UserError) as caught:
        strategy_lib.create_strategy("tpu", "local", 0)
    text = message(caught)
    assert text.startswith("--tpu=local: cannot be initialised (")
    assert [part for part in parts if part not in text] == []


GONE = [
    tf.errors.UnavailableError(None, None, "Socket closed"),
    tf.errors.AbortedError(
        None, None, "Unable to find a context_id matching …. Perhaps the worker was restarted, or …"
    ),
    tf.errors.InternalError(None, None, "failed to connect to all addresses; last error: …"),
]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_tpu_that_goes_away(machine, error):
    with pytest.raises(GroupError, match=r"^the TPU is gone"), lost_peers_reported("TPU"):
        raise error
    machine.append(error)  # also while it is initialised
    with pytest.raises(GroupError), lost_peers_reported("TPU"):
        strategy_lib.create_strategy("tpu", "local", 0)
    with pytest.raises(type(error)), lost_peers_reported(None):
        raise error


def test_what_is_no_loss_keeps_its_traceback():
    with pytest.raises(tf.errors.InternalError), lost_peers_reported("TPU"):
        raise tf.errors.InternalError(None, None, "a bug")


@pytest.fixture
def short(small_config):
    config = dataclasses.replace(small_config, num_epochs=0.5, steps_per_loop=4, ema_decay=None)
    return with_optimizer(config, warmup_epochs=0.0)


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Of the last checkpoint, read back without the trainer."""
    path = tf.train.latest_checkpoint(str(folder / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("state/")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.usefixtures("machine")
def test_a_training_is_that_of_any_other_strategy(short, data_dir, tmp_path, capsys):
    strategies = {
        "tpu": stand_in(),
        "one": strategy_of(1),
    }
    assert strategy_lib.checkpoint_device(strategies["tpu"]) == "/job:localhost"
    assert strategy_lib.checkpoint_device(strategies["one"]) is None
    found, records = {}, {}
    for name, strategy in strategies.items():
        run = RunFolder(str(tmp_path / name), short)
        train.train_and_evaluate(short, strategy, run, data_dir)
        found[name] = weights(tmp_path / name)
        records[name] = read_records(run.metrics, "train")
        if name == "tpu":
            assert "XLA on: TPUStrategy compiles every step itself" in capsys.readouterr().out
    assert len(records["tpu"]) == len(records["one"]) == 11
    for name in found["tpu"]:
        np.testing.assert_allclose(found["tpu"][name], found["one"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("machine")
def test_a_run_whose_tpu_went_away_goes_on(short, data_dir, tmp_path, monkeypatch):
    """The checkpoint before it stays, and the next start goes on from there to the end."""
    short = with_model(dataclasses.replace(short, checkpoint_every_s=0.0), "linear")
    strategy = stand_in()
    make = build.make_train_loop

    def make_short_lived(*args):
        loop, calls = make(*args), iter([False, False, True])

        class Loop:
            get_concrete_function = loop.get_concrete_function
            experimental_get_tracing_count = loop.experimental_get_tracing_count

            def __call__(self, *args):
                if next(calls):
                    raise GONE[0]
                return loop(*args)

        return Loop()

    monkeypatch.setattr(build, "make_train_loop", make_short_lived)
    run = RunFolder(str(tmp_path), short)
    with pytest.raises(GroupError, match="Socket closed"), lost_peers_reported("TPU"):
        train.train_and_evaluate(short, strategy, run, data_dir)
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-8")
    monkeypatch.setattr(build, "make_train_loop", make)
    train.train_and_evaluate(short, strategy, run, data_dir)
    assert [record["step"] for record in read_records(run.metrics, "train")] == list(range(1, 12))

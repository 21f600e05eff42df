"""The set-up and checks of `--strategy=tpu` before TensorFlow is imported. No TensorFlow.

There are two ways to use a TPU. `--tpu=local` drives the chips of this machine, a TPU VM of one
host, through libtpu, which this process loads. Any other name, or grpc://HOST:PORT, is a TPU whose
hosts run TensorFlow's own servers: a slice of several hosts. There the trainer runs on one of them
and loads no libtpu.

The checks come before the import for three reasons: TensorFlow reads its environment during the
import; a libtpu that does not fit ends the process there, by a signal that no `except` sees; and
TensorFlow waits silently for hosts that do not answer.
"""

import glob
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from trainer.errors import GroupError, UserError

LOCAL = "local"

# By TensorFlow's version, the first libtpu with which importing it was seen to abort (2.20 was
# seen to import 0.0.14 to 0.0.31).
_ABORTS_FROM = {"2.20": "0.0.32"}
# The device files of chips: v2 to v4 have their own driver, later ones use Linux's VFIO.
_CHIPS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# Importing takes 5 s. Meanwhile libtpu asks Google's metadata server, which answers at once on a
# TPU VM; elsewhere libtpu asks for minutes.
_IMPORT_S = 120.0
_LOOK_UP_S = 10.0  # for each answer of Google's servers
_REACH_S = 60.0  # the hosts of a slice start at their own pace
_RETRY_S = 0.5
_PORT = 8470  # of TensorFlow's server on a TPU's hosts
_INSTALL = "pip install --no-deps -r requirements-tpu.txt, in a separate environment (docs/tpu.md)"


def name_of(flag: str, environ: Mapping[str, str]) -> str:
    """Returns the TPU that `--tpu` or TPU_NAME names; "" for none.

    Raises:
        UserError: if they name different TPUs.
    """
    inherited = environ.get("TPU_NAME", "")
    if flag and inherited and flag != inherited:
        raise UserError(
            f"--tpu={flag}: TPU_NAME names another TPU, {inherited}; unset it, or leave --tpu out"
        )
    return flag or inherited


def environment(name: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables that TensorFlow needs for this TPU; set ones stay.

    Raises:
        UserError: if a variable that is set contradicts the name.
    """
    if name != LOCAL:
        _refuse(environ, name, "TF_PLUGGABLE_DEVICE_LIBRARY_PATH", (), "loads libtpu")
        _refuse(environ, name, "TPU_LOAD_LIBRARY", ("0",), "loads libtpu")
        return {"TPU_NAME": name, "TPU_LOAD_LIBRARY": "0"}
    # Seen with TensorFlow 2.20: the import aborts if TPU_LOAD_LIBRARY is 0, and the TPU's
    # initialisation if the C API is off.
    _refuse(environ, name, "TPU_LOAD_LIBRARY", ("1",), "prevents libtpu from being loaded")
    _refuse(environ, name, "PJRT_DEVICE", ("TPU",), "is not a TPU")
    _refuse(
        environ, name, "NEXT_PLUGGABLE_DEVICE_USE_C_API", ("true", "1"), "does not work with libtpu"
    )
    path = environ.get("TF_PLUGGABLE_DEVICE_LIBRARY_PATH") or _libtpu_path()
    if path and not Path(path).is_file():
        raise UserError(
            f"TF_PLUGGABLE_DEVICE_LIBRARY_PATH={path}: is not a file; unset it for the installed "
            f"libtpu, or name a libtpu.so"
        )
    return {
        "TPU_NAME": LOCAL,
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": environ.get("NEXT_PLUGGABLE_DEVICE_USE_C_API", "true"),
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": path,
    }


def _refuse(
    environ: Mapping[str, str], tpu: str, name: str, allowed: Sequence[str], why: str
) -> None:
    value = environ.get(name, "")
    if value and value not in allowed:
        raise UserError(f"--tpu={tpu}: contradicts {name}={value}, which {why}; unset it")


def prepare(name: str, environ: MutableMapping[str, str]) -> str:
    """Sets the environment, and checks that TensorFlow can be imported and will find its TPU.

    Returns:
        The argument of TensorFlow's resolver: `local`, or grpc:// and all hosts.

    Raises:
        UserError: if something is missing, or versions do not fit.
        GroupError: if a host of the TPU does not answer.
    """
    environ.update(environment(name, environ))
    # One process drives all hosts: a group of workers, left by another launcher, does not apply.
    environ.pop("TF_CONFIG", None)
    if name == LOCAL:
        _check_packages(environ["TF_PLUGGABLE_DEVICE_LIBRARY_PATH"])
        _check_chips(environ)
        _probe_import(environ)
        return LOCAL
    hosts, version = _look_up(name)
    _check_version(name, version)
    _reach(name, hosts, _REACH_S)
    return "grpc://" + ",".join(hosts)


def _libtpu_path() -> str:
    """Returns the installed package's library, without importing it; "" for none."""
    spec = importlib.util.find_spec("libtpu")
    return str(Path(spec.origin).with_name("libtpu.so")) if spec and spec.origin else ""


def _version(package: str) -> str:
    """Returns the version of an installed package; "" for none."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _tensorflow_version() -> str:
    found = (_version(name) for name in ("tensorflow-tpu", "tensorflow", "tensorflow-cpu"))
    return next(filter(None, found), "")


def _check_packages(library: str) -> None:
    """Checks the packages by their records, at once and without importing them.

    Args:
        library: the libtpu.so; "" for none.
    """
    tensorflow, plain = _version("tensorflow-tpu"), _version("tensorflow")
    if not tensorflow:
        found = f"tensorflow {plain}" if plain else "no TensorFlow"
        raise UserError(
            f"--tpu=local: {found} is installed, but only tensorflow-tpu supports TPUs: {_INSTALL}"
        )
    if plain and not _is_as_installed("tensorflow-tpu"):
        raise UserError(
            f"--tpu=local: tensorflow {plain} overwrote tensorflow-tpu {tensorflow} (both have the "
            f"same files), and does not support TPUs; create the environment again: {_INSTALL}"
        )
    if not library:
        raise UserError(f"--tpu=local: libtpu, the TPU's driver, is not installed: {_INSTALL}")
    # Even if the user names another libtpu.so: TensorFlow loads the installed one, too.
    libtpu, first = _version("libtpu"), _ABORTS_FROM.get(_minor(tensorflow))
    if libtpu and first and _numbers(libtpu) >= _numbers(first):
        raise UserError(
            f"libtpu {libtpu}: like all versions from {first} on, it ends the process that imports "
            f"TensorFlow {tensorflow}; install the one of requirements-tpu.txt: {_INSTALL}"
        )


def _is_as_installed(package: str) -> bool:
    """Whether the package's main library is its own, by its size: pip lets one package overwrite
    another's files."""
    for file in metadata.distribution(package).files or ():
        if file.name.startswith("libtensorflow_cc.so") and file.size is not None:
            path = Path(str(file.locate()))
            return path.exists() and path.stat().st_size == file.size
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _check_chips(environ: Mapping[str, str]) -> None:
    """Checks that there are chips, and that no other process holds them.

    Without chips, libtpu asks the network for minutes when it is imported, and TensorFlow 2.20 ends
    by a signal when it initialises them. Only one process at a time can use the chips.
    """
    chips = [path for pattern in _CHIPS for path in glob.glob(pattern)]  # noqa: PTH207
    if not chips:
        raise UserError(
            f"--tpu=local: this machine has no TPU (no {' or '.join(_CHIPS)}); run it on a TPU VM "
            f"(docs/tpu.md), or use --strategy=auto without --tpu"
        )
    # With these, the user assigns a host's chips to processes.
    if environ.get("TPU_VISIBLE_CHIPS") or environ.get("TPU_VISIBLE_DEVICES"):
        return
    for link in glob.glob("/proc/[0-9]*/fd/*"):  # noqa: PTH207
        process = int(link.split("/")[2])
        with suppress(OSError):  # of another user, or ended meanwhile
            chip = os.readlink(link)  # noqa: PTH115
            if chip in chips and process != os.getpid():
                command = Path(f"/proc/{process}/comm").read_text().strip()
                raise UserError(
                    f"--tpu=local: process {process} ({command}) holds this machine's TPU "
                    f"({chip}), which only one process at a time can use; end it, and try again"
                )


def _probe_import(environ: Mapping[str, str]) -> None:
    """Imports TensorFlow in another process first: 5 s, once, for a run of hours.

    A libtpu that does not fit would end this process by a signal, without a word to the user. A
    launcher would take that for a kill, and answer with another TPU, again and again.
    """
    library = environ["TF_PLUGGABLE_DEVICE_LIBRARY_PATH"]
    libtpu = f"libtpu {_version('libtpu')}" if library == _libtpu_path() else library
    both = f"TensorFlow {_tensorflow_version()} with {libtpu}"
    try:
        result = subprocess.run(
            [sys.executable, "-c", "import tensorflow"],
            env={**environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_IMPORT_S,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{both}: importing it takes more than {_IMPORT_S:g} s, perhaps because Google's "
            f"metadata server does not answer; run it on a TPU VM, or set TPU_SKIP_MDS_QUERY=1 and "
            f"the variables that libtpu then asks for"
        ) from None
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise UserError(f"{both}: importing it ends the process by {name}; {_INSTALL}")
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"{both}: importing it fails ({last[:200]}); {_INSTALL}")


def _look_up(name: str) -> tuple[list[str], str]:
    """Returns the hosts of a TPU as HOST:PORT, and their runtime version by Google's API, or "".

    An address needs no look-up. A name is looked up once, here: TensorFlow's resolver would do so
    again and again, without a time limit if it asks the metadata server.
    """
    if name.startswith("grpc://"):
        hosts = [host.removeprefix("grpc://") for host in name.split(",")]
        return [host if ":" in host else f"{host}:{_PORT}" for host in hosts], ""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_LOOK_UP_S)
    try:
        # Project, zone and credentials come from the metadata server of this VM.
        from cloud_tpu_client import Client

        client = Client(tpu=name)
        endpoints, version = client.network_endpoints(), client.runtime_version()
    # Whatever fails (HTTP, credentials or the answer), the user gets one line.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or "no reason given"
        raise UserError(
            f"--tpu={name}: cannot be looked up ({type(error).__name__}: {reason[:200]}); name a "
            f"TPU of this VM's project and zone, or grpc://HOST:PORT of each of its hosts, "
            f"separated by commas, or local for the chips of this machine"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return [f"{end['ipAddress']}:{end['port']}" for end in endpoints], version or ""


def _check_version(name: str, runtime: str) -> None:
    """Checks that the TPU's hosts run this TensorFlow.

    TensorFlow does not compare versions when it connects: an operation that the slice lacks fails
    later, as not registered, or hangs.
    """
    found = re.search(r"(?:^|tf-)(\d+\.\d+)", runtime)
    here = _tensorflow_version()
    if found and found[1] != _minor(here):
        raise UserError(
            f"--tpu={name}: TensorFlow versions differ: the TPU's hosts run {found[1]} "
            f"({runtime}), this machine {here or 'none'}; create the TPU with the image "
            f"tpu-vm-tf-{here}-pod-pjrt, or install TensorFlow {found[1]} here"
        )


def _reach(name: str, hosts: Sequence[str], seconds: float) -> None:
    """Returns when each host has accepted a connection: TensorFlow would wait forever."""
    deadline = time.monotonic() + seconds
    for host in hosts:
        address, _, port = host.rpartition(":")
        while True:
            try:
                socket.create_connection((address.strip("[]"), int(port)), timeout=5).close()
                break
            except ValueError:
                raise UserError(f"--tpu={name}: {host} is not HOST:PORT") from None
            except OSError as error:
                reason = error.strerror or str(error)
            if time.monotonic() >= deadline:
                raise GroupError(
                    f"--tpu={name}: no TensorFlow answers at {host} ({reason}); a slice's image "
                    f"must run TensorFlow's server (tpu-vm-tf-…-pod-pjrt); for a TPU of one host, "
                    f"use --tpu=local on it"
                )
            time.sleep(_RETRY_S)  # another machine: there is nothing to wait on

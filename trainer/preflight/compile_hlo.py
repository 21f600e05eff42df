"""Compiles an HLO program for a TPU slice, without a TPU. compiler.py runs it as a subprocess.

It runs in a separate environment (requirements-preflight.txt) and imports nothing from trainer:

    .venv-preflight/bin/python compile_hlo.py SLICE CACHE <PROGRAM

PROGRAM is a serialized HloModuleProto. CACHE is a folder of results, named by a hash of the program
and the compiler's versions. The last line of the output is the result, as JSON (see compiler.py).
It ends with the process that started it.

It calls private functions of jaxlib: hence the pinned versions, and the canary test.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

# Lets libtpu be loaded by several processes at once, without a chip and without log files.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_LOG_DIR"] = "disabled"
os.environ["TPU_STDERR_LOG_LEVEL"] = os.environ["TPU_MIN_LOG_LEVEL"] = "3"

from importlib.metadata import version

import numpy as np
from jax._src.compiler import get_compile_options
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir
from jax.experimental import topologies

# The compiler's default takes several times as long. For a ResNet-50 on v5e:2x4, the two peaks of
# memory are 0.2 % apart.
OPTIMIZATION_LEVEL = 1
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def main(slice_name: str, cache: str) -> None:
    program = sys.stdin.buffer.read()
    topology = _topology(slice_name)
    with mlir.make_ir_context():
        module = _module(program)
        entry = Path(cache) / f"{_key(module, slice_name)}.json"
        result = _kept(entry)
        if result is None:
            started = time.monotonic()
            result = _compile(module, topology)
            result |= {"compile_seconds": time.monotonic() - started, "versions": _versions()}
            if result["status"] != "refused":
                _keep(entry, result)
            result["cached"] = False
    print(json.dumps(result))


def _kept(entry: Path) -> dict | None:
    """Returns an earlier result, or None if there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        result = json.loads(entry.read_text())
        if result["cached"]:
            return result
    return None


def _keep(entry: Path, result: dict) -> None:
    """Keeps a result, if the cache can be written."""
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        whole = entry.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(result | {"cached": True}))
        whole.replace(entry)


def _topology(name: str):
    """Returns the slice's topology; ends with a result that says why if there is no such slice."""
    # The compiler assumes hosts of four chips, unless the host of a single chip is described.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if re.search(r":1(x1)*$", name) else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    except Exception as error:  # the compiler has many
        print(json.dumps({"status": "no_slice", "reason": _first_line(error)}))
        sys.exit()


def _module(program: bytes) -> ir.Module:
    """Converts HLO to StableHLO, without the copies that the converter leaves in mhlo."""
    module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))
    copies = []

    def find(op: ir.Operation) -> ir.WalkResult:
        if op.name == "mhlo.copy":
            copies.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(find)
    for op in copies:
        op.results[0].replace_all_uses_with(op.operands[0])
        op.erase()
    # TensorFlow's name has a running number, which would change the cache's key.
    module.operation.attributes["sym_name"] = ir.StringAttr.get("train_step")
    return module


def _key(module: ir.Module, slice_name: str) -> str:
    text = module.operation.get_asm(enable_debug_info=False)
    parts = (text, slice_name, *_versions().values(), Path(__file__).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jax", "jaxlib", "libtpu")}


def _compile(module: ir.Module, topology) -> dict:
    devices = topology.devices
    num_replicas = len(devices)
    options = get_compile_options(
        num_replicas=num_replicas,
        num_partitions=1,
        device_assignment=np.arange(num_replicas).reshape(num_replicas, 1),
    )
    options.executable_build_options.optimization_level = OPTIMIZATION_LEVEL
    try:
        compiled = devices[0].client.compile(
            module, executable_devices=_jax.DeviceList(tuple(devices)), compile_options=options
        )
    except _jax.JaxRuntimeError as error:
        return _failure(str(error))
    memory = compiled.get_compiled_memory_stats()
    costs = compiled.cost_analysis()
    text = compiled.hlo_modules()[0].to_string()
    sizes = _all_reduces(text)
    return {
        "status": "compiled",
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "all_reduces": len(sizes),
        "all_reduce_bytes": sum(sizes),
        # Operations that XLA computes a second time to save memory.
        "recomputed": len(re.findall(r"^\s*%\S*\.remat\S* = ", text, re.MULTILINE)),
    }


def _all_reduces(text: str) -> list[int]:
    """Returns the bytes of each all-reduce's results in an HLO text: one array, or a tuple."""
    found = []
    for shapes in re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", text):
        arrays = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shapes)
        found.append(sum(_size(kind) * _count(axes) for kind, axes in arrays))
    return found


def _size(kind: str) -> int:
    """Returns the bytes of a number: bf16 has 16 bits, a pred is a byte."""
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1


def _count(axes: str) -> int:
    return int(np.prod([int(n) for n in axes.split(",") if n], dtype=np.int64))


def _failure(message: str) -> dict:
    if message.startswith("RESOURCE_EXHAUSTED") and "hbm" in message:
        # One of its messages has the bytes, another rounded units, a third neither.
        found = re.search(r"\(size=(\d+)\) would exceed", message) or re.search(
            r"Used ([\d.]+)([KMGT]?) of \S+ hbm", message
        )
        size, unit = (*found.groups(), "")[:2] if found else (0, "")
        needed = int(float(size) * _UNITS[unit])
        return {"status": "out_of_memory", "needed_bytes": needed}
    op = re.search(r'op_name="([^"]+)"', message)
    return {
        "status": "refused",
        "reason": _first_line(message),
        "op_name": op[1] if op else "",
    }


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with its parent
    main(*sys.argv[1:])

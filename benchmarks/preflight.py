"""Reports what each recipe needs on the TPU slice its header names, and each family on v5e:2x2.

    python -m benchmarks.preflight --out benchmarks/preflight-DATE.md

Uses trainer.preflight, which compiles for the chip and runs on none. Results are cached; --fresh
compiles everything again, to measure the compile time.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.machine import ROOT, hardware, markdown_table, say
from trainer.preflight.report import NOT_SHOWN
from trainer.preflight.slices import parse_slice

FAMILY_SLICE = "v5e:2x2"
IMAGENET = "configs/imagenet_resnet50.py"
CIFAR = "configs/cifar10_resnet20.py"
# One model per family, 128 images per chip: ImageNet's at 224 pixels, CIFAR's at 32.
FAMILIES = {
    **dict.fromkeys(
        ("resnet50", "resnet50_v1", "resnet50d", "seresnet50", "resnetrs50", "resnext50_32x4d"),
        IMAGENET,
    ),
    **dict.fromkeys(("wide_resnet50_2", "resnet152", "vgg16_bn"), IMAGENET),
    **dict.fromkeys(("mobilenetv2_100", "mobilenetv3_large_100"), IMAGENET),
    **dict.fromkeys(("resnet20", "wrn28_10"), CIFAR),
}

_ONLY = flags.DEFINE_list("only", [], "Only the rows with one of these words in their names.")
_FRESH = flags.DEFINE_bool("fresh", False, "Ignore cached results and compile everything.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write in addition to printing.")


def slice_of(path: Path) -> str:
    """Returns the TPU slice that a recipe's header names."""
    found = re.search(r"TPU slice: (\S+?)\.?\n", path.read_text(encoding="utf-8"))
    if not found:
        raise SystemExit(f"{path}: its header must name a slice, for example: TPU slice: v5e:2x4.")
    return found[1]


def cases() -> dict[str, list[str]]:
    """Returns preflight's flags for each row, by the row's name."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        arguments = [f"--config=configs/{path.name}", f"--tpu={slice_of(path)}"]
        if path.stem.startswith("photos_"):  # num_classes comes from the data
            arguments += ["--set", "model.num_classes=37"]
        found[f"{path.stem}.py"] = arguments
    for name, config in FAMILIES.items():
        settings = ["--set", f"model.name={name}", "--set", "precision=mixed_bfloat16"]
        found[name] = [
            *(f"--config={config}", f"--tpu={FAMILY_SLICE}", "--global_batch_size=512"),
            *settings,
        ]
    return found


def measure(arguments: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainer.preflight", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{shlex.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def row(name: str, found: dict[str, Any]) -> list[str]:
    accumulation = found["fits_with_accumulation_steps"] if not found["fits"] else None
    compiled = found if found["fits"] else found["with_accumulation"]
    where = [name, found["slice"], f"{found['per_replica_batch_size']:,}"]
    if compiled is None:
        needed = f"{found['needed_bytes'] / 2**30:.2f}: does not fit"
        return [*where, needed, "", "", "", "", f"{found['compile_seconds']:.0f}"]
    peak_flops = parse_slice(found["slice"]).core.peak_flops
    note = f", with accumulation_steps={accumulation}" if accumulation else ""
    return [
        *where,
        f"{compiled['peak_bytes'] / 2**30:.2f} of {found['hbm_bytes'] / 2**30:.2f}{note}",
        f"{compiled['flops']:.3g}",
        f"{compiled['all_reduces']}, {compiled['all_reduce_bytes'] / 1e6:,.1f} MB",
        f"{compiled['flops'] / peak_flops * 1e3:.3g}",
        f"{compiled['recomputed']}",
        f"{compiled['compile_seconds']:.0f}",
    ]


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"{argv[1]}: arguments must be flags")
    chosen = {
        name: arguments
        for name, arguments in cases().items()
        if not _ONLY.value or any(word in name for word in _ONLY.value)
    }
    rows, versions = [], {}
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, **({"XDG_CACHE_HOME": empty} if _FRESH.value else {})}
        for name, arguments in chosen.items():
            found = measure(arguments, env)
            versions = found["versions"]
            rows.append(row(name, found))
            say(" | ".join(rows[-1]))
    head = ["what", "slice", "images a core", "peak HBM, GiB", "FLOPs a step and core"]
    head += ["all-reduces", "step at least, ms", "recomputed operations", "compiling, s"]
    document = [
        "# What train steps take on TPUs, as compiled, not as run",
        f"`python -m benchmarks.preflight {shlex.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d %H:%M')}, on {hardware()}; "
        + ", ".join(f"{name} {value}" for name, value in versions.items()),
        "Recipes are compiled on the slice that their headers name; families in mixed_bfloat16 on "
        f"{FAMILY_SLICE}, 128 images a chip, by the ImageNet recipe at 224 pixels or the CIFAR-10 "
        'recipe at 32. One compilation each. "Step at least" is the FLOPs at the chip\'s peak: a '
        "lower bound, not an estimate.",
        NOT_SHOWN,
        markdown_table(head, rows),
    ]
    text = "\n\n".join(document)
    if _OUT.value:
        Path(_OUT.value).write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)

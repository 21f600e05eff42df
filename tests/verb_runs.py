"""Runs verbs as a user would, without TensorFlow: a stub in its place ends the process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = 99


def write_stubs(folder: Path) -> Path:
    """Writes packages that end any process that imports them.

    TFDS is none of them: it imports TensorFlow only when it reads.
    """
    for name in ("tensorflow", "tf_keras"):
        (folder / f"{name}.py").write_text(f"import os\nos._exit({IMPORTED})\n")
    return folder


def run_main(
    *arguments: object,
    pythonpath: object = "",
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
    verb: str = "trainer.main",
) -> subprocess.CompletedProcess:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TF_CONFIG", "TPU_NAME", "TFDS_DATA_DIR")
    }
    return subprocess.run(
        [sys.executable, "-m", verb, *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(pythonpath)} | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def only_line(result: subprocess.CompletedProcess, code: int = 2) -> str:
    """Returns the message of a refused run, which must be its only output."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")

"""`make samples`: runs the commands whose output the documentation shows, and writes it there.

A block of output has its sample's name in a comment above it, which no reader sees:

    <!-- sample: default-run -->

The picture of TensorBoard is of the same run. It needs Chromium.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from docs.picture import PictureError, take_picture

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PICTURE = ROOT / "docs" / "tensorboard.png"
BLOCK = re.compile(r"(<!-- sample: ([\w-]+) -->\n```\n)(.*?)(^```)", re.DOTALL | re.MULTILINE)
_RUN = "runs/digits"  # of the default recipe


class Sample(NamedTuple):
    """A command, and which of its lines are shown: those in which the pattern is found."""

    command: tuple[str, ...]
    shown: str
    is_exact: bool = True  # the same on every machine, so that a test compares it
    at_start: bool = False  # only the lines before the first that is not shown


def _main(*arguments: str) -> tuple[str, ...]:
    return ("-m", "trainer.main", *arguments)


_DEFAULT = _main(f"--workdir={_RUN}")
_FIRST = _main("--set", "num_epochs=5", "--workdir=runs/first")
# In the order in which they run: `done` repeats the command before it.
SAMPLES = {
    "wrong-field": Sample(_main("--set", "optimizer.learning_rte=0.05"), "error"),
    "other-name": Sample(_main("--epochs=3"), "error"),
    "resnet50": Sample(
        ("-m", "trainer.inspect", "--model=resnet50"), "output  parameters|^stem|stage4|^total"
    ),
    "first-run": Sample(_FIRST, "^resnet20|XLA off|logs and|^[0-9]+ steps$", False, at_start=True),
    "done": Sample(_FIRST, "^already done", is_exact=False),
    "default-run": Sample(_DEFAULT, "epoch 25.0.*evaluated|^best accuracy", is_exact=False),
    "default-start": Sample(
        _DEFAULT, "from the command|epoch 25.0.*evaluated|^best accuracy", is_exact=False
    ),
    "preflight": Sample(
        ("-m", "trainer.preflight", "--config=configs/imagenet_resnet50.py", "--tpu=v5e:2x4"),
        "^(resnet50,|compiles|peak|FLOPs|all-reduces|step time)",
        is_exact=False,
    ),
}


def output(command: tuple[str, ...], folder: Path) -> str:
    """Runs Python with these arguments in a folder, and returns what it prints."""
    python = [sys.executable, *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        python, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return run.stdout + run.stderr


def excerpt(text: str, sample: Sample) -> str:
    """Returns the lines that a sample shows, with `…` for those in between."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.search(sample.shown, line):
            lines.append(line.rstrip())
        elif sample.at_start:
            break
        elif lines[-1:] != ["…"]:
            lines.append("…")
    while lines[-1:] == ["…"]:
        lines.pop()
    return "".join(f"{line}\n" for line in lines)


def main() -> None:
    texts: dict[tuple[str, ...], str] = {}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").symlink_to(ROOT / "configs")
        for sample_name, sample in SAMPLES.items():
            again = sample_name == "done"
            if again or sample.command not in texts:
                texts[sample.command] = output(sample.command, folder)
            found[sample_name] = excerpt(texts[sample.command], sample)
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            text = BLOCK.sub(lambda m: f"{m[1]}{found[m[2]]}{m[4]}", text)
            page.write_text(text, encoding="utf-8")
        try:
            take_picture(folder / _RUN, PICTURE)
        except PictureError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Launching groups in tests: submitting, and a launcher in a separate process."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from launch import cli
from launch.interface import Document
from tests.launch import worker
from trainer.run.log import read_records

ROOT = Path(__file__).parents[2]


class Group:
    """Workers that follow a plan (worker.py), and how a test submits them."""

    def __init__(self, folder: Path, backend: str):
        self.backend = backend
        self.plan, self.workdir = folder / "plan", folder / "run"
        self._python = worker.write(folder)

    def arguments(self, plan: dict[str, list[str]], *flags: str, nodes: int = 2) -> list[str]:
        self.plan.write_text(json.dumps(plan))
        own = [f"--nodes={nodes}", f"--python={self._python}", *flags]
        trainer = ["--strategy=multi_worker", f"--plan={self.plan}", f"--workdir={self.workdir}"]
        return ["submit", f"--backend={self.backend}", "--name=a", *own, "--", *trainer]

    def submit(self, plan: dict[str, list[str]], *flags: str, nodes: int = 2) -> int:
        return cli.main(self.arguments(plan, *flags, nodes=nodes))

    @property
    def seen(self) -> list[dict]:
        return worker.seen(self.plan)

    @contextlib.contextmanager
    def submitted(self, plan: dict[str, list[str]], *flags: str, until: int) -> Iterator:
        """Yields a launcher in a separate process, once `until` workers wait."""
        with launcher(self.arguments(plan, *flags)) as process:
            lines: list[str] = []
            while (
                sum("waiting" in line for line in lines) < until or "launch a: running" not in lines
            ):
                lines += read_until(process, "")
            yield process


@contextlib.contextmanager
def launcher(arguments: list[str]) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "launch", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True) as p:
        try:
            yield p
        finally:
            p.kill()


def read_until(process: subprocess.Popen, text: str, times: int = 1) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        times -= text in line
        if not times:
            return lines
    raise AssertionError("\n".join(lines))


SMALL = (
    *("--set=data.global_batch_size=66", "--set=num_epochs=4"),
    *("--set=eval_every_epochs=1", "--set=steps_per_loop=5", "--set=data.eval_batch_size=100"),
    "--set=checkpoint_every_s=0",
)


def as_undisturbed(workdir: Path, undisturbed: Path) -> None:
    """Asserts that every step ran once, with the batches and weights of an uninterrupted run.

    Training magnifies rounding (tests/step/test_train_step.py), which differs between one process
    and several. A batch or a slot of another step would differ by far more.
    """
    for kind, key in (("train", "loss"), ("eval", "loss")):
        values, expected = (read_records(p / "metrics.jsonl", kind) for p in (workdir, undisturbed))
        assert [record["step"] for record in values] == [record["step"] for record in expected]
        losses, others = ([record[key] for record in records] for records in (values, expected))
        if kind == "train":
            np.testing.assert_allclose(losses, others, rtol=0.03)
            np.testing.assert_allclose(losses[:12], others[:12], rtol=1e-4)
        else:
            np.testing.assert_allclose(losses[-1], others[-1], rtol=0.1)


def undisturbed_run(workdir: Path) -> None:
    """Trains in one process."""
    command = [sys.executable, "-m", "trainer.main", "--strategy=one_device", *SMALL]
    subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True, capture_output=True)


def check_golden(name: str, documents: Sequence[Document]) -> None:
    """Compares with golden/NAME.txt; UPDATE_GOLDEN=1 writes that file instead.

    Look at the difference before you commit it.
    """
    path = Path(__file__).parent / "golden" / f"{name}.txt"
    text = "".join(f"--- {document.title}\n{document.text}" for document in documents)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 writes it again"

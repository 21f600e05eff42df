"""Compares our input pipeline with its peers: the same files, crops and cores, no model.

    python -m benchmarks.input --out benchmarks/input-DATE.md

The files are scikit-learn's two photos, as shipped and at other sizes and qualities. The contenders
take turns, as in benchmarks/step.py; `limit` only decodes the crops. Three more measurements are of
our input alone: the throughput that random and block order lose if each read takes 20 ms, memory
over many batches, and the time to the first batch in the middle of an epoch of ImageNet's size.
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks.contenders import Contender, started, take_turns
from benchmarks.machine import (
    ROOT,
    hardware,
    markdown_table,
    say,
    verdict,
    versions_text,
    write_report,
)
from benchmarks.peers.input_files import CLASSES


class Photos(NamedTuple):
    """A stored form of the two photos."""

    width: int
    height: int
    quality: int | None  # JPEG quality; None: the files as shipped


PHOTOS = {
    "shipped": Photos(640, 427, None),
    "small": Photos(320, 213, 75),
    "large": Photos(1280, 854, 90),
}
CONTENDERS = {
    "folder": Contender("ours, folder", "", "input_ours", "folder"),
    "tfrecord": Contender("ours, tfrecord", "", "input_ours", "tfrecord"),
    "limit": Contender("decoding the crops alone", "", "input_limit"),
    "torch": Contender("PyTorch DataLoader, Pillow", "torch", "input_torch"),
    "model_garden": Contender("Model Garden's parser", "model-garden", "input_model_garden"),
}
OURS = ("folder", "tfrecord")
GOALS = {"limit": 0.9, "torch": 1.3, "model_garden": 1.1}
GOALS_RANDAUGMENT = {"torch": 1.5, "model_garden": 1.5}
BATCH, IMAGE_SIZE, FILES = 64, 224, 128
MEASURED = "--- measured ---"  # separates the results from whatever libraries print before
OWN = {  # measurements of our input alone, in benchmarks/peers/input_own.py
    "latency": "Reads of 20 ms",
    "memory": "Host memory",
    "seek": "Time to the first batch in the middle of an epoch of 1,281,167 examples",
}

_PHOTOS = flags.DEFINE_list("photos", list(PHOTOS), "Forms of the photos to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements per contender.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Approximate duration of one measurement.")
_THREADS = flags.DEFINE_integer("threads", 2, "CPU cores to use.", lower_bound=1)
_OWN = flags.DEFINE_list("own", list(OWN), "Measurements of our input alone.")
_OUT = flags.DEFINE_string("out", None, "Markdown file to write in addition to printing.")
_JSON = flags.DEFINE_string("json", None, "JSON file for the raw numbers.")


def write_files(root: Path, photos: Photos) -> None:
    """Writes FILES photos to `root/train/CLASS/*.jpg`, and as TFRecord to `root/records`."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    for index, name in enumerate(CLASSES):
        shipped = Path(sample.filenames[index]).read_bytes()
        image = Image.fromarray(sample.images[index]).resize((photos.width, photos.height))
        (root / "train" / name).mkdir(parents=True)
        for number in range(FILES // len(CLASSES)):
            path = root / "train" / name / f"{number:03d}.jpg"
            if photos.quality is None:
                path.write_bytes(shipped)
            else:
                image.save(path, quality=photos.quality)
    command = [sys.executable, "-m", "trainer.prepare", f"--source={root}", "--splits=train,train"]
    command += [f"--out={root / 'records'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def measure(
    root: Path, randaugment: bool, rounds: int, seconds: float
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Mapping[str, str]]]:
    """Returns the contenders' measurements, taken in turns, and each environment's versions."""
    arguments = [f"--data={root}", f"--batch={BATCH}", f"--image_size={IMAGE_SIZE}"]
    arguments += [f"--threads={_THREADS.value}"] + ["--randaugment"] * randaugment
    contenders = {
        name: contender
        for name, contender in CONTENDERS.items()
        if not (randaugment and name == "limit")
    }
    with started(contenders, arguments) as workers:
        steps = {
            name: max(4, round(seconds / worker.ready["seconds_per_step"]))
            for name, worker in workers.items()
        }
        versions = {
            contenders[name].environment or "ours": worker.ready["versions"]
            for name, worker in workers.items()
        }
        return take_turns(workers, steps, rounds), versions


def table(runs: Mapping[str, Sequence[dict[str, Any]]], goals: Mapping[str, float]) -> str:
    rates = {
        name: [BATCH * run["steps"] / run["seconds"] for run in found]
        for name, found in runs.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = []
    for name, values in rates.items():
        ratios = ["", ""]
        if name not in OURS:
            found = (medians[ours] / medians[name] for ours in OURS)
            ratios = [f"{ratio:.2f} {_brackets(ratio, goals.get(name))}" for ratio in found]
        cores = statistics.median(run["cpu_seconds"] / run["seconds"] for run in runs[name])
        rows.append(
            [
                CONTENDERS[name].title,
                f"{medians[name]:.0f}",
                f"{min(values):.0f} to {max(values):.0f}",
                *ratios,
                "" if name == "torch" else f"{cores:.2f}",  # its workers are separate processes
            ]
        )
    return markdown_table(
        [
            "",
            "images/s, median",
            "least to most",
            "folder is faster by",
            "tfrecord by",
            "cores busy",
        ],
        rows,
    )


def _brackets(ratio: float, goal: float | None) -> str:
    text = verdict(ratio, goal)
    return f"({text})" if text else ""


def main(argv: Sequence[str]) -> None:
    unknown = (set(_PHOTOS.value) - set(PHOTOS)) | (set(_OWN.value) - set(OWN)) | set(argv[1:])
    if unknown:
        raise app.UsageError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PHOTOS)}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])
    document = [
        "# The input against its peers",
        f"`python -m benchmarks.input {shlex.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d %H:%M')}, on {hardware()}. n = {_ROUNDS.value} measurements of "
        f"about {_SECONDS.value:g} s, in turns. Batches of {BATCH}, random resized crops to "
        f"{IMAGE_SIZE} pixels, flips; {FILES} files, in the page cache.",
    ]
    raw: dict[str, Any] = {"hardware": hardware(), "argv": sys.argv[1:]}
    versions: dict[str, Mapping[str, str]] = {}
    for name in _PHOTOS.value:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), PHOTOS[name])
            for randaugment in (False, True) if name == "shipped" else (False,):
                kind = ", RandAugment" if randaugment else ""
                say(f"{name}{kind}")
                load = os.getloadavg()[0]
                runs, found = measure(Path(folder), randaugment, _ROUNDS.value, _SECONDS.value)
                versions |= found
                quality = PHOTOS[name].quality
                size = f"{PHOTOS[name].width}x{PHOTOS[name].height}"
                stored = "as shipped" if quality is None else f"JPEG quality {quality}"
                goals = GOALS_RANDAUGMENT if randaugment else GOALS
                document += [
                    f"## {size}, {stored}{kind}",
                    f"Load before: {load:.2f}.",
                    table(runs, goals),
                ]
                raw[f"{name}{kind}"] = runs
                write_report(document, versions, raw, _OUT.value, _JSON.value)
    for name in _OWN.value:
        say(OWN[name])
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.input_own", name],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        document += [f"## {OWN[name]}", output.partition(MEASURED)[2].strip()]
        write_report(document, versions, raw, _OUT.value, _JSON.value)
    print("\n\n".join([*document, versions_text(versions)]))


if __name__ == "__main__":
    app.run(main)

"""`python -m trainer.prepare`: writes folders of images as TFRecord shards, which are read fast.

    python -m trainer.prepare --from=folder --source=/photos --to=tfrecord --out=/data/photos
    python -m trainer.main --config=… --data_dir=/data/photos --set data.name=tfrecord

Every image is decoded once, so that a broken one is found here and not in the third hour of a run.
What TensorFlow does not decode and Pillow does, such as TIFF, is converted to PNG.
Shards are written in parallel and appear whole; after a stop, the same command writes those that
are missing. A shard is written again if one of its files or their order has changed: if a file was
added or removed, that is nearly all. At the end, `manifest.json` has counts, classes and checksums.
"""

import os
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.cli.quiet import quiet_start
from trainer.data.splits.request import Request, list_splits
from trainer.errors import EXIT_DONE, UserError

FLAGS = flags.FlagValues()
_FROM = flags.DEFINE_enum("from", "folder", ["folder"], "Input format.", flag_values=FLAGS)
_TO = flags.DEFINE_enum(
    "to",
    "tfrecord",
    ["tfrecord", "nothing"],
    "Output format; nothing only verifies the images.",
    flag_values=FLAGS,
)
_SOURCE = flags.DEFINE_string("source", "", "The folder of the images.", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", "", "The folder to write the shards to.", flag_values=FLAGS)
_SPLITS = flags.DEFINE_list(
    "splits", ["train", "val"], "The training split, then the evaluation split.", flag_values=FLAGS
)
_EVAL_FRACTION = flags.DEFINE_float(
    "eval_fraction",
    None,
    "Share of each class's images to hold out for evaluation, by a hash of their paths, if "
    "--source has no split folders.",
    flag_values=FLAGS,
)
_SHARD_MB = flags.DEFINE_float(
    "shard_mb", 128.0, "Approximate size of a shard, in MB.", lower_bound=0.001, flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer(
    "threads", os.cpu_count() or 1, "Shards to write at once.", lower_bound=1, flag_values=FLAGS
)
_ON_BAD = flags.DEFINE_enum(
    "on_bad_example",
    "fail",
    ["fail", "skip"],
    "What to do about images that cannot be decoded.",
    flag_values=FLAGS,
)


def prepare() -> int:
    """Prepares according to the flags and returns the exit code."""
    if not _SOURCE.value:
        raise UserError("--source: must name the root of the folders")
    if _TO.value == "tfrecord" and not _OUT.value:
        raise UserError("--out: must name a folder for the TFRecord files; or --to=nothing")
    if len(_SPLITS.value) != 2:
        raise UserError(f"--splits={','.join(_SPLITS.value)}: must be two, such as train,val")
    request = Request(
        source=Path(_SOURCE.value).expanduser(),
        out=Path(_OUT.value).expanduser() if _TO.value == "tfrecord" else None,
        splits=tuple(_SPLITS.value),
        eval_fraction=_EVAL_FRACTION.value,
        shard_mb=_SHARD_MB.value,
        threads=_THREADS.value,
        skip=_ON_BAD.value == "skip",
    )
    listings = list_splits(request)
    with quiet_start(level=1):  # warnings of the PNG decoder too
        from trainer.data import preparation

    preparation.prepare(request, listings)
    return EXIT_DONE


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.prepare", prepare, FLAGS)


if __name__ == "__main__":
    main()

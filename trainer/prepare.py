"""`python -m trainer.prepare`: folders of images to sharded TFRecord files that a run reads fast.

    python -m trainer.prepare --from=folder --source=/photos --to=tfrecord --out=/data/photos
    python -m trainer.main --set data.name=tfrecord --data_dir=/data/photos …

Every image is decoded once, so that a broken one is found here and not in the third hour of a run.
Shards are made in parallel and appear whole; stopped half-way, the same command goes on with those
that are missing. A shard is made anew where one of its files, or its place among them, has changed:
after a file is added or removed that is nearly all. At the end comes `manifest.json`: counts,
classes, checksums.
"""

import os
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.cli.flags import OUT
from trainer.cli.quiet import quiet_start
from trainer.errors import EXIT_DONE, UserError

_FROM = flags.DEFINE_enum("from", "folder", ["folder"], "What there is.")
_TO = flags.DEFINE_enum(
    "to", "tfrecord", ["tfrecord", "nothing"], "What is made; nothing: only verify."
)
_SOURCE = flags.DEFINE_string("source", "", "The root of the folders.")
_SPLITS = flags.DEFINE_list("splits", ["train", "val"], "Training's, then evaluation's.")
_EVAL_FRACTION = flags.DEFINE_float(
    "eval_fraction", None, "The root has no folders of splits: hold out this share by hash."
)
_SHARD_MB = flags.DEFINE_float("shard_mb", 128.0, "About how large shards are.", lower_bound=0.001)
_THREADS = flags.DEFINE_integer(
    "threads", os.cpu_count() or 1, "Shards to make at once.", lower_bound=1
)
_ON_BAD = flags.DEFINE_enum(
    "on_bad_example", "fail", ["fail", "skip"], "What follows images that cannot be decoded."
)
flags.declare_key_flag("out")


def main() -> int:
    """Does what the flags say and returns the exit code."""
    if not _SOURCE.value:
        raise UserError("--source: must name the root of the folders")
    if _TO.value == "tfrecord" and not OUT.value:
        raise UserError("--out: must name a folder for the TFRecord files; or --to=nothing")
    if len(_SPLITS.value) != 2:
        raise UserError(f"--splits={','.join(_SPLITS.value)}: must be two, as train,val")
    with quiet_start():
        from trainer.data.preparation import Request, prepare

    prepare(
        Request(
            source=Path(_SOURCE.value).expanduser(),
            out=Path(OUT.value).expanduser() if _TO.value == "tfrecord" else None,
            splits=tuple(_SPLITS.value),
            eval_fraction=_EVAL_FRACTION.value,
            shard_mb=_SHARD_MB.value,
            threads=_THREADS.value,
            skip=_ON_BAD.value == "skip",
        )
    )
    return EXIT_DONE


if __name__ == "__main__":
    command.run(main)

"""Verifies folders of images and writes them as sharded TFRecord files, in parallel, resumably.

Shards appear whole, each with a receipt next to it: its contents, and the files it was made from.
`manifest.json`, written last, has counts, classes and checksums.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tqdm import tqdm

from trainer.data import duplicates
from trainer.data.conversion import ConversionError, decodable
from trainer.data.decoder_log import WarningFinder
from trainer.data.images import decode_whole
from trainer.data.splits.folder import Listing
from trainer.data.splits.image_files import CONVERTED
from trainer.data.splits.record_index import INDEX, index_shards
from trainer.data.splits.request import Request, list_splits
from trainer.data.splits.tfrecord import MANIFEST
from trainer.errors import UserError
from trainer.failures import reason_of
from trainer.files import locked, replacing, write_atomically

_BAD = "bad_examples.txt"
_WARNED = "decoder_warnings.txt"
_DUPLICATES = "duplicates.txt"
_SHOWN = 20  # images of each list named on the terminal
_RECIPE = "configs/photos_resnet18.py"  # for the command to train with
_SECONDS_BETWEEN_LINES = 30.0


class PlannedShard(NamedTuple):
    """A file to write, and the images for it."""

    path: Path | None  # None: only verify
    files: Sequence[tuple[str, int]]  # path, label
    class_names: Sequence[str]
    root: Path

    @property
    def receipt(self) -> Path:
        """The file next to the shard that lists its contents and the files it was made from."""
        assert self.path is not None
        return self.path.with_name(f".{self.path.name}.json")


def prepare(request: Request, listings: dict[str, Listing] | None = None) -> None:
    """Verifies all images, and writes the shards, their index and the manifest.

    Args:
        listings: what `list_splits` has found already.

    Raises:
        UserError: if the source cannot be read or the target written; and, after all images, if
            there are bad ones, unless they are skipped.
    """
    out, listings = request.out, listings or list_splits(request)
    # With eval_fraction, both splits have the same folders.
    problems = list(dict.fromkeys(p for listing in listings.values() for p in listing.problems))
    for note in (note for listing in listings.values() for note in listing.notes):
        print(note)
    shards = {split: _plan(split, listing, request) for split, listing in listings.items()}
    with _only_writer(out):
        if out:
            _refuse_other_shards(out, shards)
            for name in (MANIFEST, _BAD, _WARNED, _DUPLICATES):  # outdated from here on
                (out / name).unlink(missing_ok=True)
        receipts = _make_all(shards, request.threads)
        _finish(request, listings, problems, shards, receipts)


def _finish(
    request: Request,
    listings: dict[str, Listing],
    problems: Sequence[str],
    shards: dict[str, list[PlannedShard]],
    receipts: dict[str, list[dict[str, Any]]],
) -> None:
    """Reports bad images and duplicates, and writes the index and the manifest."""
    out = request.out
    bad = [line for found in receipts.values() for receipt in found for line in receipt["bad"]]
    _report(problems, bad, out)
    _report_warned(receipts, out)
    _report_duplicates(request, shards, receipts)
    if (problems or bad) and not request.skip:
        raise UserError(
            f"{len(problems) + len(bad)} bad: fix or remove them, or leave them out with "
            f"--on_bad_example=skip"
        )
    for split, found in receipts.items():
        where = f"in {len(found)} shard(s)" if out else "can be read"
        print(f"{split}: {sum(receipt['examples'] for receipt in found):,} images {where}")
    if out:
        paths = {split: [str(shard.path) for shard in planned] for split, planned in shards.items()}
        indexed = index_shards([path for one in paths.values() for path in one], out / INDEX)
        counts = [receipt["examples"] for found in receipts.values() for receipt in found]
        for shard, count in zip(indexed, counts, strict=True):
            if shard.cut or len(shard.offsets) != count:
                raise UserError(
                    f"{shard.path}: has {len(shard.offsets)} whole records, but {count} were "
                    f"written; remove it, and run the same command again"
                )
        manifest = _manifest(listings[request.splits[0]].class_names, receipts)
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=1))
        print(f"{out / MANIFEST}: written")
    listed = {path for listing in listings.values() for path in listing.paths}
    read = listed - {line.partition("\t")[0] for line in bad}
    if (converted := sum(path.lower().endswith(CONVERTED) for path in read)) and not out:
        print(f"{converted} image(s) need --to=tfrecord, which converts them, to be trained on")
    print(f"train with: {_training_command(request, skips=bool(problems or bad))}")


def _training_command(request: Request, skips: bool) -> str:
    """Returns the command that trains on what was written, or on the source.

    Args:
        skips: whether there are bad images in the source.
    """
    command = ["python", "-m", "trainer.main", f"--config={_RECIPE}"]
    command += [f"--data_dir={request.out or request.source}"]
    train_split, eval_split = request.splits
    settings = {
        "data.name=tfrecord": bool(request.out),
        f"data.train_split={train_split}": train_split != "train",
        f"data.eval_split={eval_split}": eval_split != "val",
        f"data.eval_fraction={request.eval_fraction}": request.eval_fraction and not request.out,
        "data.on_bad_example=skip": skips and not request.out,
    }
    for setting, is_needed in settings.items():
        command += ["--set", setting] if is_needed else []
    return shlex.join(command)


def _plan(split: str, listing: Listing, request: Request) -> list[PlannedShard]:
    """Divides a listing into shards of equally many images, in its order, which mixes classes."""
    files = list(zip(listing.paths, listing.labels, strict=True))
    number = max(1, min(len(files), round(sum(listing.sizes) / (request.shard_mb * 1e6))))
    shards = []
    for index in range(number):
        first, last = (len(files) * (index + i) // number for i in (0, 1))
        path = request.out and request.out / f"{split}-{index:05d}-of-{number:05d}"
        own = files[first:last]
        shards.append(PlannedShard(path, own, listing.class_names, request.source))
    return shards


@contextlib.contextmanager
def _only_writer(out: Path | None) -> Iterator[None]:
    """Makes the folder and holds a lock in it, which is released when the process ends.

    Raises:
        UserError: if the folder cannot be written, now or later, or another process writes there.
    """
    if out is None:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", wait=False):
            yield
    except BlockingIOError:
        raise UserError(
            f"--out={out}: another process is writing there; wait for it, or stop it"
        ) from None
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror})") from None
    except tf.errors.OpError as error:  # of TensorFlow's writer
        raise UserError(f"--out={out}: cannot be written ({error.message})") from None


def _refuse_other_shards(out: Path, shards: dict[str, list[PlannedShard]]) -> None:
    planned = {shard.path for one in shards.values() for shard in one}
    for split in shards:
        others = sorted(set(out.glob(f"{split}-?????-of-?????")) - planned)
        if others:
            raise UserError(
                f"--out={out}: has other shards, such as {others[0].name}, of other data or "
                f"another --shard_mb; remove them, or name another folder"
            )


def _make_all(
    shards: dict[str, list[PlannedShard]], threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Makes all shards and returns their receipts, by split, in order."""
    total = sum(len(shard.files) for one in shards.values() for shard in one)
    with (
        _Bar(total) as bar,
        WarningFinder(threads) as finder,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        futures = {
            split: [pool.submit(_make, shard, bar, finder) for shard in one]
            for split, one in shards.items()
        }
        try:
            return {split: [f.result() for f in found] for split, found in futures.items()}
        except BaseException:  # Ctrl-C too: drops shards that have not begun, awaits the others
            pool.shutdown(cancel_futures=True)
            raise


class _Bar:
    """A progress bar on a terminal, else a line every 30 s. Its methods work in any thread.

    Args:
        clock: returns seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        self._total, self._clock = total, clock
        self._done, self._last_line = 0, clock()
        self._lock = threading.Lock()
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="image", dynamic_ncols=True, disable=hidden)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def update(self, number: int = 1) -> None:
        with self._lock:
            self._done += number
            self._bar.update(number)
            now = self._clock()
            if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = now
                print(f"{self._done:,} of {self._total:,} images", flush=True)


def _make(shard: PlannedShard, bar: _Bar, finder: WarningFinder) -> dict[str, Any]:
    """Makes a shard unless it exists already, and returns its receipt."""
    made_of = _made_of(shard)
    kept = _kept(shard)
    if kept and kept.get("made_of") == made_of:
        bar.update(len(shard.files))
        return kept
    receipt = {"made_of": made_of, **_write_records(shard, bar, finder)}
    if shard.path is not None:
        receipt |= {"bytes": shard.path.stat().st_size, "sha256": _sha256(shard.path)}
        write_atomically(shard.receipt, json.dumps(receipt))
    return receipt


def _kept(shard: PlannedShard) -> dict[str, Any] | None:
    """Returns the receipt of a shard that exists and is complete, or None.

    A shard without its bad images is not complete: they may be readable now.
    """
    if shard.path is None:
        return None
    try:
        receipt = json.loads(shard.receipt.read_text(encoding="utf-8"))
        whole = receipt["bytes"] == shard.path.stat().st_size and not receipt["bad"]
        whole = whole and len(receipt["digests"]) == len(shard.files)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged by a power cut
        return None
    return receipt if whole else None


def _made_of(shard: PlannedShard) -> str:
    """Returns a hash of the paths, labels, sizes and times of a shard's files."""
    digest = hashlib.sha256()
    for path, label in shard.files:
        try:
            status = os.stat(path)  # noqa: PTH116  # a million times
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:
            stamp = str(error.errno)
        digest.update(f"{path} {label} {stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _write_records(shard: PlannedShard, bar: _Bar, finder: WarningFinder) -> dict[str, Any]:
    bad: list[str] = []
    warned: list[str] = []
    digests: list[str | None] = []  # of the files' contents; None for a bad one
    classes: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        writer = None
        if shard.path is not None:
            new = stack.enter_context(replacing(shard.path))
            writer = stack.enter_context(tf.io.TFRecordWriter(str(new)))
        for path, label in shard.files:
            digests.append(None)
            try:
                encoded = Path(path).read_bytes()
                digest = duplicates.digest_of(encoded)
                encoded = decodable(path, encoded)
                decode = functools.partial(decode_whole, tf.constant(encoded))
                image, warnings = finder.decode(decode)
                height, width, _ = image.shape
            except OSError as error:
                bad.append(f"{path}\t{error.strerror}")
            except ConversionError as error:
                bad.append(f"{path}\t{error}")
            except tf.errors.OpError as error:
                bad.append(f"{path}\t{reason_of(error)}")
            else:
                digests[-1] = digest
                name = shard.class_names[label]
                classes[name] += 1
                warned += [f"{path}\t{warning}" for warning in warnings]
                if writer:
                    relative = os.path.relpath(path, shard.root)
                    writer.write(_example(encoded, label, name, relative, height, width))
            bar.update()
    counts = {"examples": classes.total(), "classes": dict(classes)}
    return counts | {"bad": bad, "warned": warned, "digests": digests}


def _example(
    encoded: bytes, label: int, name: str, relative: str, height: int, width: int
) -> bytes:
    """Returns a serialized `tf.train.Example` with ImageNet's field names."""

    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "image/encoded": text(encoded),
        "image/class/label": number(label),
        "image/class/text": text(os.fsencode(name)),
        "image/filename": text(os.fsencode(relative)),
        "image/height": number(height),
        "image/width": number(width),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report(problems: Sequence[str], bad: Sequence[str], out: Path | None) -> None:
    for line in [*problems, *(text.replace("\t", ": ") for text in bad[:_SHOWN])]:
        print(f"bad: {line}")
    if len(bad) > _SHOWN:
        print(f"and {len(bad) - _SHOWN} more bad images")
    if bad and out:
        lines = "".join(f"{line}\n" for line in bad)
        write_atomically(out / _BAD, lines, errors="surrogateescape")
        print(f"all bad images: {out / _BAD}")


def _report_warned(receipts: dict[str, list[dict[str, Any]]], out: Path | None) -> None:
    """Lists the images that are kept though their decoder warned: without a file, all of them."""
    found = [receipt for one in receipts.values() for receipt in one]
    # Receipts of earlier versions have no such list.
    warned = [line for receipt in found for line in receipt.get("warned", [])]
    shown = warned[:_SHOWN] if out else warned
    for line in shown:
        print(f"warned, and kept: {line.replace(chr(9), ': ')}")
    if out and warned:
        lines = "".join(f"{line}\n" for line in warned)
        write_atomically(out / _WARNED, lines, errors="surrogateescape")
        print(f"all {len(warned):,} warnings of image decoders: {out / _WARNED}")


def _report_duplicates(
    request: Request,
    shards: dict[str, list[PlannedShard]],
    receipts: dict[str, list[dict[str, Any]]],
) -> None:
    def images() -> Iterator[tuple[str, duplicates.Place]]:
        for split, planned in shards.items():
            for shard, receipt in zip(planned, receipts[split], strict=True):
                for (path, label), digest in zip(shard.files, receipt["digests"], strict=True):
                    if digest:
                        yield digest, duplicates.Place(split, shard.class_names[label], path)

    found = duplicates.find_duplicates(images())
    for line in duplicates.report(found, request.source):
        print(line)
    if request.out and (text := duplicates.table(found)):
        write_atomically(request.out / _DUPLICATES, text, errors="surrogateescape")
        print(f"all of them: {request.out / _DUPLICATES}")


def _manifest(class_names: Sequence[str], receipts: dict[str, list[dict[str, Any]]]):
    splits = {}
    for split, found in receipts.items():
        classes: collections.Counter[str] = collections.Counter(dict.fromkeys(class_names, 0))
        for receipt in found:
            classes.update(receipt["classes"])
        splits[split] = {
            "examples": sum(receipt["examples"] for receipt in found),
            "bad": sum(len(receipt["bad"]) for receipt in found),
            "classes": dict(classes),
            "shards": [
                {key: receipt[key] for key in ("examples", "bytes", "sha256")} for receipt in found
            ],
        }
    return {"class_names": list(class_names), "splits": splits}

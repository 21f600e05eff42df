"""Images that cannot be read and labels outside the classes: a run stops and names them, or skips
them and stays a function of the step."""

import collections
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data
from tests.photo_files import photo_config, write_photos
from trainer.config import Config
from trainer.data.bad_examples import BadExamples
from trainer.data.pipeline import (
    batch_indices,
    eval_dataset,
    first_bad_in_evaluation,
    first_bad_in_training,
    train_dataset,
)
from trainer.data.source import open_source
from trainer.errors import UserError
from trainer.run import train
from trainer.run.folder import RunFolder
from trainer.run.log import read_records

ALONE = tf.distribute.InputContext()


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    return write_photos(tmp_path / "photos", photos, train=12, val=6)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4])


def write_text(path: Path) -> None:
    path.write_text("not an image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def forbid(path: Path) -> None:
    path.chmod(0)


# How a file is spoilt, and the error that is reported.
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "Invalid JPEG data"),
    "text": (write_text, "Unknown image file format"),
    "empty": (empty, "Input is empty"),
    "missing": (remove, "No such file or directory"),
    "forbidden": (forbid, "Permission denied"),
}


# A bad content and a bad file in `make test`; the others take 10 s each.
QUICK_FAULTS = [
    pytest.param(name, marks=[] if name in ("cut", "missing") else pytest.mark.slow)
    for name in FAULTS
]


@pytest.fixture(params=FAULTS)
def fault(request, tmp_path) -> Iterator[tuple[Callable[[Path], None], str]]:
    """Root may read everything: the forbidden file is read as nobody."""
    as_nobody = request.param == "forbidden" and os.geteuid() == 0
    if as_nobody:
        for path in (tmp_path, *tmp_path.parents):
            if path.owner() == "root" and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o755)
        os.seteuid(65534)
    yield FAULTS[request.param] if not as_nobody else (_forbid_as_root, "Permission denied")
    if as_nobody:
        os.seteuid(0)


def _forbid_as_root(path: Path) -> None:
    os.seteuid(0)
    path.chmod(0)
    os.seteuid(65534)


def a_jpeg(folder: Path, split: str) -> Path:
    return folder / split / "flower" / "000.jpg"


def index_of(source, path: Path) -> int:
    return [source.describe(index) for index in range(len(source))].index(str(path))


def batches(config, source, start, stop, on_bad=None):
    dataset = train_dataset(config, source, start, ALONE, on_bad).take(stop - start)
    return list(dataset.as_numpy_iterator())


@pytest.mark.slow
@pytest.mark.parametrize("fault", QUICK_FAULTS, indirect=True)
def test_training_names_the_bad_file(folder, fault):
    spoil, reason = fault
    config = photo_config(crop="none", eval_crop_ratio=1.0)
    source = open_source(config, "train", str(folder))
    path = a_jpeg(folder, "train")
    assert first_bad_in_training(config, source, 0, 3) is None
    spoil(path)
    with pytest.raises(tf.errors.OpError):
        batches(config, source, 0, 3)
    found = first_bad_in_training(config, source, 0, 3)
    assert found is not None
    assert found.startswith(f"{path}: ")
    assert reason in found
    assert "{{" not in found


def skipping() -> Config:
    return photo_config(crop="none", eval_crop_ratio=1.0, on_bad_example="skip")


@pytest.fixture(scope="module")
def before(photos, tmp_path_factory):
    """The batches of such a folder while all its files are good."""
    folder = write_photos(tmp_path_factory.mktemp("photos"), photos, train=12, val=6)
    return batches(skipping(), open_source(skipping(), "train", str(folder)), 0, 9)


def test_skipping_replaces_the_bad_one_and_nothing_else(folder, fault, before):
    spoil, reason = fault
    config = skipping()
    source = open_source(config, "train", str(folder))
    path = a_jpeg(folder, "train")
    bad = index_of(source, path)
    spoil(path)
    reported = []
    after = batches(config, source, 0, 9, lambda where, why: reported.append((where, why())))
    images = source.fetch(tf.range(len(source), dtype=tf.int64)[:bad])[0]  # those before it
    assert len(images) == bad

    replaced = []
    for step, (a, b) in enumerate(zip(before, after, strict=True)):
        is_bad = batch_indices(config, source, step) == bad
        np.testing.assert_array_equal(a[0][~is_bad], b[0][~is_bad])
        np.testing.assert_array_equal(a[1][~is_bad], b[1][~is_bad])
        replaced += [image.tobytes() for image in b[0][is_bad]]
        assert not any((x == y).all() for x, y in zip(a[0][is_bad], b[0][is_bad], strict=True))
    assert len(replaced) == 3  # 9 x 8 / 24
    assert len(set(replaced)) == 1  # always by the same
    good = {image.tobytes() for a, _ in before for image in a}
    assert replaced[0] in good
    assert len(reported) >= 3  # and what was read ahead
    assert set(reported) == {(str(path), reported[0][1])}
    assert reason in reported[0][1]


# One of what fails as it is read, and one of what fails as it is decoded, in `make test`.
@pytest.mark.parametrize("fault", QUICK_FAULTS, indirect=True)
def test_what_replaces_a_bad_one_is_a_function_of_the_step(folder, fault):
    """From step 4 on, and for two workers."""
    config = skipping()
    source = open_source(config, "train", str(folder))
    fault[0](a_jpeg(folder, "train"))
    whole = batches(config, source, 0, 9)
    for (a, _), (b, _) in zip(batches(config, source, 4, 9), whole[4:], strict=True):
        np.testing.assert_array_equal(a, b)
    parts = [
        train_dataset(config, source, 0, tf.distribute.InputContext(2, worker, 2)).take(9)
        for worker in range(2)
    ]
    for (both, _), (a, _), (b, _) in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(both, np.concatenate([a, b]))


def test_evaluation_leaves_bad_ones_out_or_names_them(folder):
    config = photo_config(on_bad_example="skip")
    path = a_jpeg(folder, "val")
    write_text(path)
    source = open_source(config, "val", str(folder))
    weights = np.concatenate([w for *_, w in eval_dataset(config, source, ALONE)])
    expected = np.arange(16) < 12  # padded to whole batches
    expected[index_of(source, path)] = False
    np.testing.assert_array_equal(weights, expected)
    assert first_bad_in_evaluation(config, source) is None  # none that stops it
    found = first_bad_in_evaluation(with_data(config, on_bad_example="fail"), source)
    assert found is not None
    assert found.startswith(f"{path}: ")


@pytest.mark.parametrize("label", [-1, 2, 300])
def test_a_label_outside_the_classes(tmp_path, label):
    images = np.zeros((16, 24, 24, 3), np.uint8)
    labels = np.arange(16) % 2
    labels[5] = label
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels)
    config = photo_config(name="arrays", path="a.npz", crop="none")
    source = open_source(config, "train", str(tmp_path))
    with pytest.raises(tf.errors.InvalidArgumentError):
        batches(config, source, 0, 2)
    found = first_bad_in_training(config, source, 0, 2)
    assert found == f"{tmp_path}/a.npz, x_train[5]: label {label} is outside the 2 classes"
    skipping = with_data(config, on_bad_example="skip")
    seen = np.concatenate([found for _, found in batches(skipping, source, 0, 2)])
    assert set(seen) == {0, 1}


@pytest.mark.slow
def test_a_record_that_is_damaged_inside(folder, tmp_path):
    from trainer.data.preparation import Request, prepare

    prepare(Request(folder, tmp_path / "out"))
    shard = tmp_path / "out" / "train-00000-of-00001"
    config = photo_config(name="tfrecord", crop="none")
    source = open_source(config, "train", str(tmp_path / "out"))
    data = bytearray(shard.read_bytes())
    data[int(source._records._offsets[3]) + 100] ^= 1
    status = shard.stat()
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = first_bad_in_training(config, source, 0, 3)
    assert found is not None
    assert found.startswith(f"{source.describe(3)}: ")
    assert "corrupted record" in found
    skipping = with_data(config, on_bad_example="skip")
    assert len(batches(skipping, source, 0, 3)) == 3


def test_where_all_are_bad_there_is_an_end(folder):
    for path in (folder / "train").glob("*/*"):
        write_text(path)
    config = photo_config(on_bad_example="skip")
    source = open_source(config, "train", str(folder))
    with pytest.raises(tf.errors.InvalidArgumentError):
        batches(config, source, 0, 1)


def test_what_fails_once_is_not_replaced(folder):
    """A network that stutters must not change what a run computes."""
    config = photo_config(crop="none", on_bad_example="skip")
    source = open_source(config, "train", str(folder))
    expected = batches(config, source, 0, 3)
    asked = collections.Counter()

    class Stuttering:
        def __getattr__(self, name):
            return getattr(source, name)

        def __len__(self):
            return len(source)

        def fetch(self, indices):
            def stutter(index):
                asked[int(index[0])] += 1
                if asked[int(index[0])] == 1:
                    raise OSError("connection reset")
                return index

            return source.fetch(
                tf.ensure_shape(tf.numpy_function(stutter, [indices], tf.int64), [1])
            )

    reported = []
    found = batches(config, Stuttering(), 0, 3, lambda where, why: reported.append(where))
    for (a, _), (b, _) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert reported == []
    assert asked.total() >= 48


def test_a_list_that_cannot_be_written_does_not_stop_the_run(tmp_path):
    lines = []
    report = BadExamples(tmp_path / "not there", lines.append).reporter(ALONE)
    report("a.jpg", lambda: "broken")
    assert "a.jpg: broken; " in lines[0]
    assert "cannot be written (No such file or directory)" in lines[0]


def test_names_that_are_no_text_are_listed_and_known_again(tmp_path):
    lines = []
    where = os.fsdecode(b"\xff.jpg")
    for _ in range(2):
        BadExamples(tmp_path, lines.append).reporter(ALONE)(where, lambda: "broken")
    assert (tmp_path / "bad_examples.txt").read_bytes() == b"\xff.jpg\tbroken\n"
    assert len(lines) == 1


# --- a whole run ------------------------------------------------------------------------------


def run(config, folder: Path, workdir: Path, num_replicas: int = 1):
    return train.train_and_evaluate(
        config, strategy_of(num_replicas), RunFolder(str(workdir), config), str(folder)
    )


def test_a_run_stops_and_names_the_file_then_resumes_by_skipping(folder, tmp_path, capsys):
    bad, bad_in_val = a_jpeg(folder, "train"), a_jpeg(folder, "val")
    write_text(bad)
    write_text(bad_in_val)
    config = dataclasses.replace(photo_config(crop="none"), num_epochs=2.0)
    workdir = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        run(config, folder, workdir)
    message = str(caught.value)
    assert message.startswith(f"bad example: {bad}: Unknown image file format")
    assert message.endswith("; fix or remove it, or continue with --set data.on_bad_example=skip")
    del caught  # and the folder's lock with it

    summary = run(with_data(config, on_bad_example="skip"), folder, workdir, num_replicas=2)
    assert 0 <= summary.last_accuracy <= 1
    lines = (workdir / "bad_examples.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted(map(str, (bad, bad_in_val)))
    assert all("Unknown image file format" in line for line in lines)
    out = capsys.readouterr().out
    assert f"bad example skipped (1 so far, see {workdir}/bad_examples.txt): " in out
    assert [r["bad_examples"] for r in read_records(workdir / "metrics.jsonl", "eval")] == [1, 1]


def test_an_evaluation_that_stops_names_the_file(folder, tmp_path):
    write_text(a_jpeg(folder, "val"))
    config = dataclasses.replace(photo_config(), steps_per_loop=1, checkpoint_every_s=0.0)
    removal = "; removing it changes the data, which needs another --workdir"  # as it has saved
    with pytest.raises(
        UserError, match=rf"bad example: .*/val/flower/000.jpg: Unknown .*{removal}"
    ):
        run(config, folder, tmp_path / "run")


def test_skipping_where_all_are_bad_says_so(folder, tmp_path):
    for path in (folder / "train").glob("*/*"):
        write_text(path)
    config = photo_config(on_bad_example="skip")
    with pytest.raises(UserError, match="all examples tried in its place are bad, too"):
        run(config, folder, tmp_path / "run")


def test_each_bad_example_is_reported_once_even_after_a_kill(tmp_path):
    lines, asked = [], []

    def why() -> str:
        asked.append(1)
        return "broken"

    for _ in range(2):  # the second process of a run
        bad_examples = BadExamples(tmp_path, lines.append)
        for worker in (0, 0, 2):
            report = bad_examples.reporter(tf.distribute.InputContext(3, worker, 3))
            report("a.jpg", why)
            report("b.jpg", why)
    assert (tmp_path / "bad_examples.txt").read_text() == "a.jpg\tbroken\nb.jpg\tbroken\n"
    assert (tmp_path / "bad_examples-2.txt").read_text() == "a.jpg\tbroken\nb.jpg\tbroken\n"
    assert len(lines) == len(asked) == 4


@pytest.mark.slow
def test_copies_of_a_run_do_not_share(folder, tmp_path):
    """Two runs on the same data each have their own list."""
    write_text(a_jpeg(folder, "train"))
    config = photo_config(on_bad_example="skip", crop="none")
    for name in ("one", "other"):
        run(config, folder, tmp_path / name)
        assert (tmp_path / name / "bad_examples.txt").exists()
    shutil.rmtree(tmp_path / "one")

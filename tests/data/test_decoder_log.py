"""trainer.data.decoder_log: the real decoders' messages are recognized, counted and attributed."""

import concurrent.futures
import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from tests.conftest import encode
from tests.photo_files import CLASSES, bad_jpegs, odd_jpegs, odd_png
from trainer.config import DataConfig
from trainer.data import decoder_log
from trainer.data.decoder_log import Tally, WarningFinder, first_note, split
from trainer.data.images import decode_whole
from trainer.data.preparation import Request, prepare


@pytest.fixture(scope="module")
def jpeg(photos) -> bytes:
    return encode(photos[0][:96, :96])


@pytest.fixture
def spare_file(monkeypatch) -> Iterator[None]:
    """What a verb's start leaves behind."""
    file = os.memfd_create("spare")
    decoder_log.append_always(file)
    monkeypatch.setattr(decoder_log, "spare_file", file)
    yield
    os.close(file)


def decoded(image: bytes) -> tf.Tensor:
    return decode_whole(tf.constant(image))


def test_warnings_are_taken_out(jpeg, capfd):
    for image, warning in odd_jpegs(jpeg).values():
        decoded(image)
        text = capfd.readouterr().err.encode()
        rest, warnings = split(b"before\n" + text + b"after\n")
        assert rest == b"before\nafter\n"
        assert set(warnings) == {warning}


def test_errors_are_taken_out_and_are_not_warnings(jpeg, capfd):
    for name, image in bad_jpegs(jpeg).items():
        with pytest.raises(tf.errors.InvalidArgumentError):
            decoded(image)
        text = capfd.readouterr().err.encode()
        assert text, name
        assert split(text) == (b"", []), name


@pytest.mark.parametrize(
    "text",
    [
        b"E0000 00:00:1795832540.381006 25188 cuda_dnn.cc:52] failed: NOT_INITIALIZED\n",
        b"F0000 00:00:1795832540.381006 25188 jpeg_mem.cc:52] Check failed: x\n",
        b"terminate called after throwing an instance of 'std::bad_alloc'\n",
        b"not first: Corrupt JPEG data: bad Huffman code\n",
        b"Insufficient memory (case 4)\n",
        b"Corrupt JPEG data: bad Huff",  # not a whole line
    ],
)
def test_other_lines_are_kept(text):
    assert split(text) == (text, [])


def test_each_warning_is_of_its_image(jpeg, spare_file):
    """Threads share the descriptor, and images that do not decode write to it, too."""
    odd = list(odd_jpegs(jpeg).values())
    bad = list(bad_jpegs(jpeg).values())
    images = []
    for index in range(120):
        warned, broken = index % 7 == 3, index % 11 == 5
        image, warning = odd[index % len(odd)] if warned else (jpeg, None)
        images.append((bad[index % len(bad)], None) if broken and not warned else (image, warning))

    def found(image: bytes) -> list[str]:
        with contextlib.suppress(tf.errors.OpError):
            return finder.decode(lambda: decoded(image))[1]
        return []

    with WarningFinder(4) as finder, concurrent.futures.ThreadPoolExecutor(4) as pool:
        warnings = list(pool.map(found, [image for image, _ in images]))
    assert warnings == [[warning] if warning else [] for _, warning in images]


def test_other_text_is_passed_on(jpeg, capfd, spare_file):
    odd, warning = odd_jpegs(jpeg)["revision"]
    with WarningFinder(1) as finder:
        os.write(2, b"no memory\n")
        assert finder.decode(lambda: decoded(odd))[1] == [warning]
        os.write(2, b"I0000 of no interest\nthe last\n")
    assert capfd.readouterr().err == "no memory\nthe last\n"


def test_nothing_is_left_out_without_a_file(jpeg, capfd):
    odd, warning = odd_jpegs(jpeg)["revision"]
    with WarningFinder(1) as finder:
        assert finder.decode(lambda: decoded(odd))[1] == []
    assert warning in capfd.readouterr().err


@pytest.fixture
def folder(jpeg, photos, tmp_path) -> tuple[Path, set[str]]:
    """A folder of images, some odd, and the lines about them."""
    png = encode(photos[1][:96, :96], "PNG")
    images = {
        f"{number}.{kind}": (image, None)
        for number in range(9)
        for kind, image in (("jpg", jpeg), ("png", png))
    }
    images |= {f"{name}.jpg": image for name, image in odd_jpegs(jpeg).items()}
    images["iccp.png"] = odd_png(png)
    expected = set()
    for split_ in ("train", "val"):
        for class_name in CLASSES:
            place = tmp_path / "photos" / split_ / class_name
            place.mkdir(parents=True)
            for name, (image, warning) in images.items():
                (place / name).write_bytes(image)
                if warning:
                    expected.add(f"{place / name}\t{warning}")
    return tmp_path / "photos", expected


def of_libjpeg(lines: set[str]) -> set[str]:
    return {line for line in lines if "PNG" not in line}


def test_prepare_lists_warned_images_and_keeps_them(folder, tmp_path, capsys, spare_file):
    root, expected = folder
    out = tmp_path / "out"
    for _ in range(2):  # the second time, from the receipts
        prepare(Request(root, out, shard_mb=1, threads=3))
        lines = (out / "decoder_warnings.txt").read_text().splitlines()
        assert of_libjpeg(set(lines)) == of_libjpeg(expected)
        printed = capsys.readouterr().out
        assert printed.count("warned, and kept: ") == len(lines)
        assert f"train: {2 * 23} images" in printed
    for line in expected:
        Path(line.partition("\t")[0]).unlink()
    prepare(Request(root, out, shard_mb=1, threads=3))
    assert "warned, and kept" not in capsys.readouterr().out
    assert not (out / "decoder_warnings.txt").exists()


@pytest.mark.slow
def test_the_command_lists_pngs_too_and_nothing_else_comes_out(folder):
    root, expected = folder
    command = [sys.executable, "-m", "trainer.prepare", f"--source={root}", "--to=nothing"]
    environment = {
        name: text for name, text in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"
    }
    done = subprocess.run(
        [*command, "--threads=3"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("warned, and kept: ")]
    assert sorted(lines) == sorted(
        f"warned, and kept: {line.replace(chr(9), ': ')}" for line in expected
    )
    assert all("image/s]" in line for line in done.stderr.split("\r") if line)  # the bar


def test_the_note_comes_once_and_names_the_command(monkeypatch):
    tally = Tally()
    monkeypatch.setattr(decoder_log, "tally", tally)
    data = DataConfig(name="folder", train_split="train", eval_split="val")
    assert first_note(data, "/photos") is None
    tally.add(["Corrupt JPEG data: bad Huffman code", "another"])
    tally.add(["another"])
    note = first_note(data, "/my photos")
    assert note is not None
    assert "warned 3 time(s) so far, such as 'Corrupt JPEG data: bad Huffman code'" in note
    words = shlex.split(note.replace("'", "", 2).rpartition("; ")[2])
    assert words[:4] == ["python", "-m", "trainer.prepare", "--source=/my photos"]
    assert first_note(data, "/my photos") is None


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"eval_split": "test"}, "--splits=train,test --to"),
        ({"eval_split": "val", "eval_fraction": 0.1}, "--eval_fraction=0.1 --to"),
        ({"eval_split": "val", "path": "photos"}, "--source=d/photos --to"),
        ({"eval_split": None}, None),
        ({"name": "tfrecord"}, None),
    ],
)
def test_the_note_names_the_splits(monkeypatch, fields, flags):
    tally = Tally()
    tally.add(["odd"])
    monkeypatch.setattr(decoder_log, "tally", tally)
    note = first_note(DataConfig(**({"name": "folder", "train_split": "train"} | fields)), "d")
    assert note is not None
    assert flags in note if flags else "trainer.prepare" not in note

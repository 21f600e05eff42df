"""Decoding, cropping and resizing against Pillow, on real photos in all formats."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import encode
from trainer.config import Config, DataConfig
from trainer.data import images
from trainer.data.images import decode_eval, decode_train, resize
from trainer.data.streams import Stream


def config(**data) -> Config:
    return Config(data=DataConfig(**({"image_size": 64} | data)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_evaluation_crops_the_centre_as_pillow_does(photos, kind):
    for photo in photos:
        file = encode(photo, kind)
        image = decode_eval(tf.constant(file), config(), 3).numpy()
        side = round(427 * 0.875)
        left, top = (640 - side) // 2, (427 - side) // 2
        opened = Image.open(io.BytesIO(file)).convert("RGB")
        crop = opened.crop((left, top, left + side, top + side))
        expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR), float)
        # JPEG and WebP decoders differ by a few units where colour is upsampled.
        assert np.abs(image - expected).mean() < 1.5
        assert np.abs(image - expected).max() < 30


def whole(file: bytes, channels: int = 3) -> np.ndarray:
    """The whole image, by what decodes a crop."""
    return images.decode(
        tf.constant(file), lambda shape: tf.stack([0, 0, shape[0], shape[1]]), channels
    ).numpy()


def from_pillow(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_images_become_three_equal_channels(photos, kind):
    file = from_pillow(Image.fromarray(photos[0]).convert("L"), kind)
    expected = np.asarray(Image.open(io.BytesIO(file)))
    np.testing.assert_array_equal(whole(file), np.repeat(expected[..., None], 3, -1))


def test_a_jpeg_is_decoded_to_pillows_bits(photos):
    """So that weights trained elsewhere see the images that they know."""
    for photo in photos:
        for options in ({"quality": 75}, {"quality": 95, "subsampling": 0}, {"progressive": True}):
            file = encode(photo, "JPEG", **options)
            np.testing.assert_array_equal(whole(file), np.asarray(Image.open(io.BytesIO(file))))


def test_colours_become_grey_where_there_is_one_channel(photos):
    decoded = whole(encode(photos[0], "JPEG"), channels=1)
    assert decoded.shape == (427, 640, 1)
    expected = np.asarray(Image.fromarray(photos[0]).convert("L"), int)
    assert np.abs(decoded[..., 0] - expected).mean() < 2


def test_cmyk_jpeg_has_the_colours_that_it_shows(photos):
    file = from_pillow(Image.fromarray(photos[0]).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), int)
    assert np.abs(whole(file) - expected).mean() < 3


def test_transparency_is_dropped_as_pillow_drops_it(photos):
    alpha = np.linspace(0, 255, 427 * 640).reshape(427, 640, 1).astype(np.uint8)
    rgba = Image.fromarray(np.concatenate([photos[0], alpha], axis=-1))
    np.testing.assert_array_equal(whole(from_pillow(rgba, "PNG")), np.asarray(rgba.convert("RGB")))


def test_a_png_of_16_bits_keeps_the_upper_8():
    ramp = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    decoded = whole(from_pillow(Image.fromarray(ramp), "PNG"), channels=1)
    assert np.abs(decoded[..., 0].astype(int) - ramp / 257).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_is_looked_up(photos, kind):
    file = from_pillow(Image.fromarray(photos[0]).quantize(64), kind)
    np.testing.assert_array_equal(
        whole(file), np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    )


def test_a_bmp_with_a_palette_is_refused_and_a_grey_one_is_not(photos):
    """TensorFlow takes the numbers of its colours for greys."""
    photo = Image.fromarray(photos[0])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="a BMP with a palette of colours: save"
    ):
        whole(from_pillow(photo.quantize(64), "BMP"))
    grey = from_pillow(photo.convert("L"), "BMP")
    np.testing.assert_array_equal(
        whole(grey), np.asarray(Image.open(io.BytesIO(grey)).convert("RGB"))
    )


def test_the_first_frame_of_an_animation_is_the_image(photos):
    frames = [Image.fromarray(photo) for photo in photos]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"), int)
    assert np.abs(whole(buffer.getvalue()) - expected).max() <= 1


def test_random_crops_are_windows_within_the_ranges(photos, monkeypatch):
    windows = []
    original = images._random_window

    def watched(shape, seed):
        windows.append((*original(shape, seed).numpy(), *shape.numpy()[:2]))
        return original(shape, seed)

    monkeypatch.setattr(images, "_random_window", watched)
    files = [encode(photo, kind) for photo in photos for kind in ("JPEG", "PNG")]
    cropping = config(crop="random_resized", image_size=32)
    for position in range(200):
        file, where = tf.constant(files[position % 4]), tf.constant(position, tf.int64)
        assert decode_train(file, where, cropping, 3).shape == (32, 32, 3)
    top, left, heights, widths, rows, columns = np.array(windows).T
    areas, ratios = heights * widths / (640 * 427), widths / heights
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + heights <= rows).all()
    assert (left + widths <= columns).all()
    assert areas.min() > 0.07
    assert areas.max() <= 1
    assert areas.max() > 0.7
    assert areas.min() < 0.1
    assert (ratios > 0.73).all()
    assert (ratios < 1.36).all()
    assert len({tuple(w) for w in windows}) > 190


def window_at(position: int, photo: Image.Image) -> tuple[int, int, int, int]:
    """The random crop of a position, as left, top, right, bottom."""
    seed = tf.constant([Stream.RANDOM_RESIZED_CROP, position], tf.int64)
    shape = tf.constant([photo.height, photo.width, 3])
    top, left, height, width = images._random_window(shape, seed).numpy().tolist()
    return left, top, left + width, top + height


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_antialiased_crops_are_pillows(photos, kind):
    photo = Image.open(io.BytesIO(from_pillow(Image.fromarray(photos[0]), kind)))
    cropping = config(crop="random_resized", antialias=True, image_size=230)
    for position in range(20):
        box = window_at(position, photo)
        if min(box[2] - box[0], box[3] - box[1]) >= 460:
            continue  # libjpeg would shrink it
        file = tf.constant(from_pillow(Image.fromarray(photos[0]), kind))
        ours = decode_train(file, tf.constant(position, tf.int64), cropping, 3).numpy()
        expected = photo.crop(box).resize((230, 230), Image.Resampling.BILINEAR)
        assert np.abs(ours - np.asarray(expected, int)).mean() < 1.5


@pytest.mark.parametrize("times", [1, 3, 6, 20])
def test_sampled_crops_are_pillows_from_the_size_that_libjpeg_shrinks_to(photos, times):
    size = 32
    photo = Image.fromarray(photos[0]).resize((times * size * 3 // 2, times * size))
    file = from_pillow(photo, "JPEG", quality=95)
    cropping = config(crop="random_resized", image_size=size)
    scales = set()
    for position in range(20):
        box = window_at(position, photo)
        scale = max(
            s for s in (1, 2, 4, 8) if s == 1 or min(box[2] - box[0], box[3] - box[1]) >= s * size
        )
        scales.add(scale)
        opened = Image.open(io.BytesIO(file))
        if scale > 1:
            opened.draft("RGB", (photo.width // scale, photo.height // scale))
        width, height = (box[2] - box[0]) // scale, (box[3] - box[1]) // scale
        left, top = box[0] // scale, box[1] // scale
        crop = opened.convert("RGB").crop((left, top, left + width, top + height))
        matrix = (width / size, 0, 0, 0, height / size, 0)
        expected = crop.transform((size, size), Image.AFFINE, matrix, Image.BILINEAR)
        ours = decode_train(tf.constant(file), tf.constant(position, tf.int64), cropping, 3).numpy()
        error = np.abs(ours - np.asarray(expected, int))
        assert error.mean() < 2.5  # the fast DCT
    assert max(scales) == {1: 1, 3: 2, 6: 4, 20: 8}[times]


def test_large_jpegs_are_shrunk_while_they_are_decoded(photos, monkeypatch):
    seen = []
    original = tf.io.decode_and_crop_jpeg

    def watched(*args, **options):
        seen.append(options.get("ratio", 1))
        return original(*args, **options)

    monkeypatch.setattr(tf.io, "decode_and_crop_jpeg", watched)
    file = tf.constant(encode(photos[0]))
    for side, scale in [
        (31, 1),
        (63, 1),
        (64, 2),
        (127, 2),
        (128, 4),
        (255, 4),
        (256, 8),
        (427, 8),
    ]:
        seen.clear()
        window = tf.constant([427 - side, 3, side, side + 100])
        crop = images._decode_jpeg_window(file, window, 32, 3)
        assert seen == [scale]
        assert crop.shape == (side // scale, (side + 100) // scale, 3)


def test_resizing_is_pillows(photos):
    for size in (32, 224, 500):
        resized = resize(tf.constant(photos[0][:400, :400]), size).numpy().astype(int)
        pillow = Image.fromarray(photos[0][:400, :400]).resize((size, size), Image.BILINEAR)
        assert np.abs(resized - np.asarray(pillow, int)).max() <= 1

"""Augmentation: each operation against Pillow on real photos, mixing against its formulas."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tests.conftest import with_data
from trainer.config import AugmentConfig, Config, DataConfig
from trainer.data import augment, mix
from trainer.data.order import uniform
from trainer.data.transform import augment_batch

SIZE = 96


@pytest.fixture(scope="module")
def small_photos(photos) -> list[Image.Image]:
    return [Image.fromarray(photo).resize((SIZE, SIZE), Image.BILINEAR) for photo in photos]


def positions(number: int, start: int = 0) -> tf.Tensor:
    return start + tf.range(number, dtype=tf.int64)


def config(**changes) -> Config:
    data = DataConfig(image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Config(data=data, augment=AugmentConfig(**changes))


# --- each operation, against Pillow -----------------------------------------------------------

TRANSFORM = {"resample": Image.NEAREST, "fillcolor": (128,) * 3}


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.AFFINE, matrix, **TRANSFORM)


# What each operation is at `x`, level times sign, by Pillow; `r` are the ranges below.
PILLOW = {
    "identity": lambda image, x, r: image,
    "autocontrast": lambda image, x, r: ImageOps.autocontrast(image),
    "equalize": lambda image, x, r: ImageOps.equalize(image),
    "rotate": lambda image, x, r: image.rotate(r["rotate"] * x, **TRANSFORM),
    "solarize": lambda image, x, r: ImageOps.solarize(image, 256 * (1 - abs(x))),
    "color": lambda image, x, r: ImageEnhance.Color(image).enhance(1 + r["enhance"] * x),
    "posterize": lambda image, x, r: ImageOps.posterize(image, 8 - round(r["bits"] * abs(x))),
    "contrast": lambda image, x, r: ImageEnhance.Contrast(image).enhance(1 + r["enhance"] * x),
    "brightness": lambda image, x, r: ImageEnhance.Brightness(image).enhance(1 + r["enhance"] * x),
    "sharpness": lambda image, x, r: ImageEnhance.Sharpness(image).enhance(1 + r["enhance"] * x),
    "shear_x": lambda image, x, r: affine(image, 1, r["shear"] * x, 0, 0, 1, 0),
    "shear_y": lambda image, x, r: affine(image, 1, 0, 0, r["shear"] * x, 1, 0),
    "translate_x": lambda image, x, r: affine(image, 1, 0, round(r["pixels"] * x), 0, 1, 0),
    "translate_y": lambda image, x, r: affine(image, 1, 0, 0, 0, 1, round(r["pixels"] * x)),
}
# Cubuk et al. 2020 with the ranges of Cubuk et al. 2019, table 6; Müller & Hutter 2021, table 1.
PAPERS = {
    "randaugment": {"enhance": 0.9, "rotate": 30, "shear": 0.3, "pixels": 0.45 * SIZE, "bits": 4},
    "trivialaugment": {"enhance": 0.99, "rotate": 135, "shear": 0.99, "pixels": 32, "bits": 6},
}
# Pillow's coordinates have 16 bits behind the point: a pixel in a hundred comes from its neighbour.
MOVED = ("rotate", "shear_x", "shear_y")


@pytest.mark.parametrize("policy", PAPERS)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_pillows(small_photos, name, level, policy):
    ranges = augment.RANGES[policy]._replace(fill=128.0)
    for photo in small_photos:
        for sign in (1.0, -1.0):
            strength = augment.Strength(tf.constant(level), tf.constant(sign), ranges)
            ours = augment.OPERATIONS[name](tf.constant(np.asarray(photo)), strength).numpy()
            expected = PILLOW[name](photo, level * sign, PAPERS[policy])
            error = np.abs(ours.astype(int) - np.asarray(expected, int))
            if name in MOVED:
                assert (error > 0).any(-1).mean() < 0.01
            else:
                assert error.max() <= 1


def test_what_comes_in_from_outside(small_photos):
    """Mid-grey in AutoAugment's and RandAugment's code, black in TrivialAugment's."""
    for policy, fill in (("randaugment", 128), ("trivialaugment", 0)):
        strength = augment.Strength(tf.constant(1.0), tf.constant(1.0), augment.RANGES[policy])
        moved = augment.OPERATIONS["translate_x"](
            tf.constant(np.asarray(small_photos[0])), strength
        )
        assert (moved[:, -20:].numpy() == fill).all()


def test_there_is_a_reference_for_every_operation():
    assert set(PILLOW) == set(augment.OPERATIONS)
    assert len(PILLOW) == 14  # the paper's K


def test_grey_images_are_augmented_too(small_photos):
    """One channel is what three equal ones are."""
    grey = np.asarray(small_photos[0].convert("L"))[..., None]
    for name, operation in augment.OPERATIONS.items():
        strength = augment.Strength(
            tf.constant(0.7), tf.constant(-1.0), augment.RANGES["trivialaugment"]
        )
        one = operation(tf.constant(grey), strength).numpy().astype(int)
        three = operation(tf.constant(np.repeat(grey, 3, -1)), strength).numpy().astype(int)
        assert np.abs(three - one).max() <= 1, name


# --- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "layers", "levels"),
    [("randaugment", 2, {9 / 30}), ("trivialaugment", 1, {k / 30 for k in range(31)})],
)
def test_policies_choose_evenly_and_as_often_as_they_should(monkeypatch, policy, layers, levels):
    seen = []

    def watch(name):
        def operation(image, strength):
            seen.append((name, round(float(strength.level), 4), float(strength.sign)))
            return image

        return operation

    monkeypatch.setattr(augment, "OPERATIONS", {name: watch(name) for name in PILLOW})
    chosen = config(policy=policy)
    image = tf.zeros([4, 4, 3], tf.uint8)
    for numbers in augment.draws(positions(1400), chosen):
        augment.augment(image, numbers, chosen)
    assert len(seen) == 1400 * layers
    counts = np.unique([name for name, *_ in seen], return_counts=True)[1]
    expected = len(seen) / 14
    assert ((counts - expected) ** 2 / expected).sum() < 13 + 5 * np.sqrt(26)
    assert {level for _, level, _ in seen} == {round(level, 4) for level in levels}
    assert abs(sum(sign for *_, sign in seen)) < 5 * np.sqrt(len(seen))


def test_augmented_images_are_a_function_of_the_position(small_photos):
    every = config(policy="randaugment", color_jitter=0.4, erasing=0.5, mixup=0.2, cutmix=1.0)
    every = with_data(every, flip=True)
    batch = tf.constant(np.stack([np.asarray(p) for p in small_photos] * 4))
    labels = tf.constant([0, 1, 2, 3, 4, 5, 6, 7])
    images, targets = augment_batch(batch, labels, positions(8, 40), every)
    part = augment_batch(batch[2:4], labels[2:4], positions(2, 42), every)
    np.testing.assert_array_equal(images[2:4], part[0])
    np.testing.assert_array_equal(targets[2:4], part[1])
    assert (images[0].numpy() != images[2].numpy()).any()  # the same photo elsewhere
    other = augment_batch(batch, labels, positions(8, 40), dataclasses.replace(every, seed=1))
    assert (other[0].numpy() != images.numpy()).any()


def test_nothing_asked_for_is_nothing_done(small_photos):
    batch = tf.constant(np.stack([np.asarray(p) for p in small_photos]))
    images, labels = augment_batch(batch, tf.constant([3, 4]), positions(2), config())
    np.testing.assert_array_equal(images, batch)
    assert labels.numpy().tolist() == [3, 4]


def test_color_jitter_is_three_enhancements(small_photos):
    batch = np.stack([np.asarray(p) for p in small_photos] * 10)
    where = positions(len(batch))
    jittered, _ = augment_batch(
        tf.constant(batch), tf.zeros(len(batch), tf.int32), where, config(color_jitter=0.4)
    )
    factors = np.stack([0.6 + 0.8 * uniform(where, 0, stream).numpy() for stream in (60, 61, 62)])
    assert factors.min() < 0.65
    assert factors.max() > 1.35
    for image, result, (brightness, contrast, saturation) in zip(
        batch, jittered.numpy(), factors.T, strict=True
    ):
        expected = ImageEnhance.Brightness(Image.fromarray(image)).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        expected = ImageEnhance.Color(expected).enhance(saturation)
        assert np.abs(result.astype(int) - np.asarray(expected, int)).max() <= 3


def test_erasing_is_a_rectangle_of_the_papers_sizes():
    number = 600
    images = tf.ones([number, SIZE, SIZE, 3], tf.uint8)
    erasing = with_data(config(erasing=0.25), mean=(0.2, 0.4, 0.6), std=(1.0,) * 3)
    erased, _ = augment_batch(images, tf.zeros(number, tf.int32), positions(number), erasing)
    changed = (erased.numpy() != 1).all(-1)
    hit = changed.any((1, 2))
    assert abs(hit.sum() - 150) < 5 * np.sqrt(number * 0.25 * 0.75)
    np.testing.assert_array_equal(np.unique(erased.numpy()[changed], axis=0), [[51, 102, 153]])
    heights, widths = changed[hit].any(2).sum(1), changed[hit].any(1).sum(1)
    np.testing.assert_array_equal(changed[hit].sum((1, 2)), heights * widths)  # a rectangle
    areas, ratios = heights * widths / SIZE**2, heights / widths
    assert 0.015 < areas.min() < 0.05
    assert 0.28 < areas.max() < 0.34
    assert 0.25 < ratios.min() < 0.5
    assert 2 < ratios.max() < 4


# --- mixing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5.0])
def test_shares_are_beta_distributed(alpha):
    shares = mix.beta_quantile(uniform(positions(20_000), 0, 1), alpha).numpy()
    for x in (0.001, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999):
        expected = stats.beta(alpha, alpha).cdf(x)
        noise = np.sqrt(expected * (1 - expected) / 20_000)
        assert abs((shares < x).mean() - expected) < 5 * noise + 1 / 4096, x


def mixed(number: int = 200, **changes):
    """Images of one colour each, all different, with a gradient to see places by."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (number, 16, 12, 3), np.uint8)
    labels = (np.arange(number) % 10).astype(np.int32)
    results = mix.mix(
        tf.constant(images), tf.constant(labels), positions(number), config(**changes)
    )
    return images, np.eye(10)[labels], *(result.numpy() for result in results)


def partners(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


def test_mixup_is_its_formula():
    images, one_hot, results, targets = mixed(mixup=0.4)
    kept = (targets * one_hot).sum(-1)
    np.testing.assert_allclose(kept[::2], kept[1::2])  # one λ for a pair
    np.testing.assert_allclose(
        targets, kept[:, None] * one_hot + (1 - kept[:, None]) * partners(one_hot), atol=1e-6
    )
    weights = kept[:, None, None, None]
    expected = weights * images + (1 - weights) * partners(images)
    assert np.abs(results - expected).max() <= 0.51
    assert 0.4 < kept.mean() < 0.6
    assert kept.std() > 0.2


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images, one_hot, results, targets = mixed(cutmix=1.0)
    pasted = (results == partners(images)).all(-1) & (results != images).any(-1)
    assert ((results == images).all(-1) | pasted).all()
    kept = (targets * one_hot).sum(-1)
    for inside, share in zip(pasted, kept, strict=True):
        rows, columns = inside.any(1), inside.any(0)
        assert inside.sum() == rows.sum() * columns.sum()
        assert 1 - inside.mean() == pytest.approx(share, abs=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    # λ ~ Beta(1, 1), and a rectangle that reaches over the edge pastes less.
    assert 0.5 < kept.mean() < 0.75


def test_with_both_each_pair_gets_one_of_them():
    images, _, results, _ = mixed(mixup=1.0, cutmix=1.0)
    exact = ((results == images) | (results == partners(images))).all((1, 2, 3))
    assert (exact[::2] == exact[1::2]).all()
    assert abs(exact.sum() - 100) < 5 * np.sqrt(200)

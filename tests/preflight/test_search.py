"""What fits instead of a batch that does not, and the report."""

import json

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.conftest import with_data, with_model
from tests.preflight.common import COMPILED, canary
from trainer import config as config_lib
from trainer.config import Config
from trainer.preflight import compiler, program, report
from trainer.preflight.compiler import Deadline, OutOfMemory, TimeLimitError
from trainer.preflight.search import Fit, find_fit
from trainer.preflight.slices import parse_slice


def config_of(replica_batch: int, accumulation_steps: int = 1, mixup: float = 0.0) -> Config:
    fields = [f"data.global_batch_size={4 * replica_batch}", f"augment.mixup={mixup}"]
    return config_lib.override(Config(), [*fields, f"accumulation_steps={accumulation_steps}"])


def memory_of(config: Config) -> int:
    """A stand-in for what the compiler finds: images at a time, and a sum of gradients."""
    micro_batch = config.data.global_batch_size // 4 // config.accumulation_steps
    return 10 * micro_batch + (15 if config.accumulation_steps > 1 else 0)


@settings(deadline=None)  # speed is not what is tested
@given(st.integers(1, 3000), st.integers(0, 30_000), st.sampled_from([0.0, 0.2]))
@example(3000, 2000, 0.0)  # a fifteenth fits: a second round
@example(128, 50, 0.0)  # five images
@example(1000, 5025, 0.0)  # 500 images and the sums, not a multiple of the search's unit
def test_the_largest_batch_and_the_fewest_parts_are_found(replica_batch, memory, mixup):
    replica_batch += replica_batch % 2
    config = config_of(replica_batch, mixup=mixup)
    tried = []

    def fits(config: Config) -> bool:
        return memory_of(config) <= memory

    def try_(config: Config):
        tried.append(config)
        return COMPILED if fits(config) else OutOfMemory(1, 1.0, {}, False)

    assume(not fits(config))
    found = find_fit(config, 4, try_)
    least = 2 if mixup else 1
    assert found.complete
    assert not fits(config_of(found.smallest_failed))
    assert found.largest or found.smallest_failed == least
    assert not found.largest or fits(config_of(found.largest))
    assert found.smallest_failed - found.largest <= max(8, replica_batch / 32)
    parts = [n for n in range(2, 65) if replica_batch % n == 0]
    fitting = [n for n in parts if fits(config_of(replica_batch, n))]
    # The fewest, where they are among the first that are not known to fail.
    if found.accumulation_steps is not None:
        assert found.accumulation_steps == fitting[0]
    elif found.largest:
        unknown = [n for n in parts if replica_batch // n < found.smallest_failed]
        assert not any(n in fitting for n in unknown[:4])
    for config in tried:  # each one that can be trained
        assert not (config.augment.mixes and config.data.global_batch_size // 4 % 2)


def test_when_the_time_is_over_the_known_part_is_reported():
    results = [OutOfMemory(1, 1.0, {}, False), COMPILED, TimeLimitError()]

    def try_(_: Config):
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    found = find_fit(config_of(128), 4, try_)
    assert found == Fit(32, 64, False, None, None)
    target = parse_slice("v5e:2x2")
    text = report.as_text(config_of(128), target, OutOfMemory(2**35, 9.0, {}, False), found)
    assert "needs at least 32.00 GiB of 15.75 GiB" in text
    assert "32 images at a time (64 do not): --set data.global_batch_size=128" in text
    assert "--time_limit_s" in text


@pytest.mark.parametrize("steps", [None, 2])
def test_a_pass_says_what_it_shows_and_what_not(steps):
    """By hand: 1.97e12 FLOPs at 197 TFLOP/s are 10 ms."""
    config, target = config_of(128), parse_slice("v5e:2x2")
    if steps is None:
        result, fit = COMPILED, None
    else:
        result = OutOfMemory(2**35, 9.0, {}, False)
        fit = Fit(64, 72, True, steps, COMPILED)
    text = report.as_text(config, target, result, fit)
    values = json.loads(report.as_json(config, target, result, fit))
    for words in ("at least 10 ms", "a lower bound, not an estimate", "3.00 GiB of 15.75 GiB"):
        assert words in text
    assert "Shown: XLA's program of this train step" in text
    assert "Not shown: that it runs. No TPU was used" in text
    assert "runs on" not in text
    assert values["fits"] is (steps is None)
    if steps is None:
        assert values["step_seconds_flop_lower_bound"] == pytest.approx(0.01)
        assert "that it runs" in values["not_shown"]
    else:
        assert values["fits_with_accumulation_steps"] == 2
        assert values["with_accumulation"]["peak_bytes"] == 3 * 2**30


@canary
@pytest.mark.slow
def test_canary_a_batch_that_is_too_large_is_reported_and_split(small_config):
    """By the activations of the first convolution: float32 of 64 x 64 x 16, so 256 KiB an image and
    a few of them at a time; one of 128 Ki images takes more than there is for all."""
    config = with_data(with_model(small_config, "convnet"), image_size=64)
    target = parse_slice("v5e:1x1")

    def compile_(config: Config):
        hlo = program.train_step_program(config, 1)
        return compiler.compile_program(hlo, target.name, Deadline(900))

    huge = compile_(with_data(config, global_batch_size=2**17))
    assert isinstance(huge, OutOfMemory)
    assert huge.needed_bytes >= 2**17 * 2**18
    large = with_data(config, global_batch_size=49152)
    found = compile_(large)
    assert isinstance(found, OutOfMemory)
    assert target.core.hbm_bytes < found.needed_bytes < 4 * target.core.hbm_bytes
    fit = find_fit(large, 1, compile_)
    # In step with what it says that the whole needs.
    expected = 49152 * target.core.hbm_bytes / found.needed_bytes
    assert fit.complete
    assert fit.largest == pytest.approx(expected, rel=0.15)
    assert fit.smallest_failed == fit.largest + 1024
    assert fit.accumulation_steps == 2
    assert fit.compiled.peak_bytes < target.core.hbm_bytes

"""Finds the largest batch that fits a slice, and how to split one that does not. No TensorFlow."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from trainer.config import Config
from trainer.preflight.compiler import CompiledProgram, OutOfMemory, TimeLimitError

Try = Callable[[Config], CompiledProgram | OutOfMemory]

# Each try takes minutes, so a round has at most six. They find the largest batch to within a 32nd
# of the one that does not fit, or to eight images, the compiler's unit. If none fits, there is
# another round.
_MAX_TRIES = 6
_UNIT = 8
# The program repeats its code for each part.
_MAX_PARTS = 64
_MAX_ACCUMULATIONS = 4  # tries


class Fit(NamedTuple):
    """The largest micro-batch that fits, per replica, if a config does not fit."""

    largest: int  # micro-batch that fits, in images; 0 if none is known
    smallest_failed: int  # micro-batch that was tried and does not fit
    complete: bool  # False if the time limit passed: a larger one may fit
    accumulation_steps: int | None  # with which the whole batch fits
    compiled: CompiledProgram | None  # the program with these


def find_fit(config: Config, num_replicas: int, try_: Try) -> Fit:
    """Finds the largest micro-batch that fits, by bisection below the config's.

    Args:
        try_: compiles a config. A batch smaller than one that fits is taken to fit.
    """
    replica_batch = config.data.global_batch_size // num_replicas
    parts = num_replicas * config.accumulation_steps
    least = 2 if config.augment.mixes else 1  # images are mixed in pairs
    fits, fails = 0, replica_batch // config.accumulation_steps
    steps, compiled = None, None
    try:
        while not fits and fails > least:
            unit = _unit(fails, least)
            while fails - fits > unit:
                # In units; the failed batch is rounded up to them.
                middle = unit * ((fits // unit + -(-fails // unit)) // 2)
                if isinstance(try_(with_batch(config, middle * parts)), CompiledProgram):
                    fits = middle
                else:
                    fails = middle
        if fits:
            steps, compiled = _accumulation(config, replica_batch, fails, try_)
    except TimeLimitError:
        return Fit(fits, fails, False, None, None)
    return Fit(fits, fails, True, steps, compiled)


def _unit(fails: int, least: int) -> int:
    """Returns the step between the batches that are tried below one that does not fit."""
    unit = _UNIT if fails > _UNIT else least
    while fails > unit * 2**_MAX_TRIES:
        unit *= 2
    return unit


def _accumulation(config: Config, replica_batch: int, fails: int, try_: Try):
    """Returns the fewest accumulation steps with which the whole batch fits, and the program; or
    None twice. Accumulation itself takes memory, so each candidate is compiled."""
    parts = range(config.accumulation_steps + 1, min(replica_batch, _MAX_PARTS) + 1)
    candidates = [n for n in parts if replica_batch % n == 0 and replica_batch // n < fails]
    for steps in candidates[:_MAX_ACCUMULATIONS]:
        result = try_(dataclasses.replace(config, accumulation_steps=steps))
        if isinstance(result, CompiledProgram):
            return steps, result
    return None, None


def with_batch(config: Config, size: int) -> Config:
    """Returns the config with this global batch size."""
    data = dataclasses.replace(config.data, global_batch_size=size)
    return dataclasses.replace(config, data=data)

"""The largest batch that fits a slice, and how to split one that does not. No TensorFlow."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from trainer.config import Config
from trainer.preflight.compiler import CompiledProgram, OutOfMemory, TimeLimitError

Try = Callable[[Config], CompiledProgram | OutOfMemory]

# Each try takes minutes: at most six a round, which tell the largest batch to a 32nd of what does
# not fit, or to eight images, as the compiler lays them out. Where none fits, there is one more.
_MAX_TRIES = 6
_UNIT = 8
# The parts are written out in the program, one after the other.
_MAX_PARTS = 64
_MAX_ACCUMULATIONS = 4  # that are tried


class Fit(NamedTuple):
    """What fits in place of a config that does not, for each replica."""

    largest: int  # micro-batch, in images; 0 where not one is known to fit
    smallest_failed: int  # the smallest that was tried and does not
    complete: bool  # False where the time was over: there may be a larger one
    accumulation_steps: int | None  # with which the whole batch fits, compiled as well
    compiled: CompiledProgram | None  # its result


def find_fit(config: Config, num_replicas: int, try_: Try) -> Fit:
    """By bisection over micro-batches, below the config's own.

    Args:
        try_: compiles a config; what fits at some batch is taken to fit at smaller ones.
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
                # In units, of what failed rounded up.
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
    """How finely the batches below one that does not fit are told apart."""
    unit = _UNIT if fails > _UNIT else least
    while fails > unit * 2**_MAX_TRIES:
        unit *= 2
    return unit


def _accumulation(config: Config, replica_batch: int, fails: int, try_: Try):
    """The fewest steps of accumulation with which the whole batch fits, and what was compiled;
    accumulating takes memory of its own, so that is tried. None where it was not found."""
    parts = range(config.accumulation_steps + 1, min(replica_batch, _MAX_PARTS) + 1)
    candidates = [n for n in parts if replica_batch % n == 0 and replica_batch // n < fails]
    for steps in candidates[:_MAX_ACCUMULATIONS]:
        result = try_(dataclasses.replace(config, accumulation_steps=steps))
        if isinstance(result, CompiledProgram):
            return steps, result
    return None, None


def with_batch(config: Config, size: int) -> Config:
    """The config, with this global batch size."""
    data = dataclasses.replace(config.data, global_batch_size=size)
    return dataclasses.replace(config, data=data)

"""The largest batch that fits a slice, and how to split one that does not. No TensorFlow."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from trainer.config import Config
from trainer.preflight.compiler import Compiled, OutOfMemory, TimeLimitError

Try = Callable[[Config], Compiled | OutOfMemory]

# Each try takes minutes: at most six, which tell the largest batch to a 32nd of the wanted one, or
# to eight images, as the compiler lays them out.
_MAX_TRIES = 6
_UNIT = 8


class Fit(NamedTuple):
    """What fits in place of a config that does not, for each replica."""

    largest: int  # micro-batch, in images; 0 where not one is known to fit
    smallest_failed: int  # the smallest that was tried and does not
    complete: bool  # False where the time was over: there may be a larger one
    accumulation_steps: int | None  # with which the whole batch fits, compiled as well
    compiled: Compiled | None  # its result


def find_fit(config: Config, num_replicas: int, try_: Try) -> Fit:
    """By bisection over micro-batches, below the config's own.

    Args:
        try_: compiles a config; what fits at some batch is taken to fit at smaller ones.
    """
    replica_batch = config.data.global_batch_size // num_replicas
    wanted = replica_batch // config.accumulation_steps
    unit = _UNIT if wanted > _UNIT else 2 if config.augment.mixes else 1
    while wanted > unit * 2**_MAX_TRIES:
        unit *= 2
    fits, fails = 0, -(-wanted // unit)  # in units, `wanted` rounded up
    try:
        while fails - fits > 1:
            middle = (fits + fails) // 2
            size = middle * unit * num_replicas * config.accumulation_steps
            if isinstance(try_(with_batch(config, size)), Compiled):
                fits = middle
            else:
                fails = middle
        complete = True
    except TimeLimitError:
        complete = False
    steps, compiled = None, None
    if complete and fits:
        try:
            steps, compiled = _accumulation(config, replica_batch, fits * unit, try_)
        except TimeLimitError:
            complete = False
    return Fit(fits * unit, min(fails * unit, wanted), complete, steps, compiled)


def _accumulation(config: Config, replica_batch: int, largest: int, try_: Try):
    """The fewest steps of accumulation with which the whole batch fits, and what was compiled;
    accumulating takes memory of its own, so that is tried."""
    for steps in range(config.accumulation_steps + 1, replica_batch + 1):
        if replica_batch % steps or replica_batch // steps > largest:
            continue
        result = try_(dataclasses.replace(config, accumulation_steps=steps))
        if isinstance(result, Compiled):
            return steps, result
    return None, None


def with_batch(config: Config, size: int) -> Config:
    """The config, with this global batch size."""
    data = dataclasses.replace(config.data, global_batch_size=size)
    return dataclasses.replace(config, data=data)

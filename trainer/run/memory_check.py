"""The memory that a run needs, against the free memory of host and GPUs, before the first step."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.eager import context

from trainer.config import Config
from trainer.devices.host_memory import FreeMemory, free_host_memory
from trainer.errors import UserError
from trainer.failures import training_memory_advice
from trainer.insight import memory
from trainer.insight.memory import TrainingMemory
from trainer.step.state import TrainState
from trainer.step.train_step import CompiledPart
from trainer.units import bytes_text

# Shares of the free memory. From the first on, a run is warned. From the others on, a new run is
# refused: it has no chance. Without XLA, the estimate is within 15 % of a step's peak
# (tests/insight/test_memory.py). XLA fuses operations: the TPU programs in
# benchmarks/preflight-2026-11-25.md need 0.78 (ResNeXt-50) to 0.28 (MobileNetV3) of the estimate. A
# device that XLA compiles for reports a lack of memory itself, unlike a host.
_WARNING = 0.8
_REFUSAL, _REFUSAL_WITH_XLA = 1.5, 4.0

# Batches, uint8, that the input holds. tf.data prefetches more while the step is slower than the
# input: up to 16 were seen for one replica (1,000 images of 224 pixels, 2026-11-28). Replicas share
# these; each has at least one that is read, one that is joined from groups, one prefetched.
_WAITING, _WAITING_EACH = 16, 3


class _Place(NamedTuple):
    """A memory, and what a run needs of it."""

    free: FreeMemory
    replicas: int  # of this process, that share it
    has_step: bool  # the train step runs there
    has_input: bool  # batches wait there


def check_memory(
    config: Config,
    strategy: tf.distribute.Strategy,
    compiled: CompiledPart,
    state: TrainState,
    channels: int,
    loop: tf.Graph,
    say: Callable[[str], None],
) -> None:
    """Warns of a batch that may not fit in the free memory, and refuses one that cannot.

    A run far from it only pays for an upper bound, from the graph that it has traced. A run that
    has trained with this batch before is not refused: the memory may be in use by the process that
    it continues.

    Args:
        channels: of the images, 1 or 3.
        loop: the traced train loop.

    Raises:
        UserError: for a batch that needs a multiple of the free memory, with the largest that fits.
    """
    sizes = (*config.data.train_sizes, config.data.image_size)
    # The loop is traced at one of the sizes. A step at the largest takes at most this much more.
    growth = (max(sizes) / min(sizes)) ** 2
    config = _with_image_size(config, max(sizes))
    micro_batch = (
        config.data.global_batch_size // strategy.num_replicas_in_sync // config.accumulation_steps
    )
    local = len(strategy.extended.worker_devices)
    waiting = max(math.ceil(_WAITING / local), _WAITING_EACH)  # batches of a replica
    waiting *= config.accumulation_steps * max(sizes) ** 2 * channels  # bytes per image at a time
    step = growth * memory.upper_bound(config, state.model, loop)

    def may_be_large(place: _Place) -> bool:
        needed = step * place.has_step + waiting * micro_batch * place.has_input
        return needed * place.replicas >= _WARNING * place.free.bytes

    places = [place for place in _places(strategy, state) if may_be_large(place)]
    if not places:
        return
    graph = memory.training_graph(config, state.model, channels)
    estimate = memory.training_memory(config, state.model, graph)
    refusal = _REFUSAL if compiled == "nothing" else _REFUSAL_WITH_XLA
    for place in places:
        needed = estimate if place.has_step else TrainingMemory(((0, 0),))
        needed = needed.plus(waiting) if place.has_input else needed
        share = place.replicas * needed.at(micro_batch) / max(place.free.bytes, 1)
        if share < _WARNING:
            continue
        fits = needed.batch_that_fits(round(_WARNING * place.free.bytes / place.replicas))
        cause, advice = training_memory_advice(config, strategy.num_replicas_in_sync, fits)
        less = "" if compiled == "nothing" else " (with XLA, which fuses operations, less)"
        message = (
            f"{cause} need about {bytes_text(place.replicas * needed.at(micro_batch))}{less} of "
            f"{place.free.of}, of which {bytes_text(place.free.bytes)} are free: {advice}"
        )
        if share >= refusal and state.global_step.numpy() == 0:
            raise UserError(message)
        say(f"warning: {message}")


def _places(strategy: tf.distribute.Strategy, state: TrainState) -> list[_Place]:
    """Returns the memories of this process' replicas whose free bytes are known.

    What the state holds already counts as free, since it is part of the estimate. TPUs are left
    out: their compiler refuses a step that does not fit, before the first one.
    """
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return []
    devices = strategy.extended.worker_devices
    held = sum(math.prod(v.shape) * v.dtype.size for v in state.variables)
    on_host = not any("GPU" in device for device in devices)
    places = []
    host = free_host_memory()
    if host is not None:
        held_here = held * len(devices) if on_host else 0
        free = FreeMemory(host.bytes + held_here, host.of)
        places.append(_Place(free, len(devices), has_step=on_host, has_input=True))
    if not on_host:
        names = {device.rpartition("device:")[2] for device in devices}
        for name, free in _free_gpu_memory(names).items():
            on_gpu = FreeMemory(free + held, f"the memory of {name}")
            places.append(_Place(on_gpu, 1, has_step=True, has_input=False))
    return places


def _free_gpu_memory(names: set[str]) -> dict[str, int]:
    """Returns the bytes that TensorFlow can still allocate on GPUs, by their names, such as
    `GPU:0`."""
    settings = context.context().config  # else TensorFlow would make the devices by other ones
    limits = {
        device.name.removeprefix("/device:"): device.memory_limit
        for device in device_lib.list_local_devices(settings)
    }
    return {
        name: limits[name] - tf.config.experimental.get_memory_info(name)["current"]
        for name in names & set(limits)
    }


def _with_image_size(config: Config, size: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=size))

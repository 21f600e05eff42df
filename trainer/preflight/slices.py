"""TPU slices by name: the number of replicas, and the memory and speed of each. No TensorFlow."""

import difflib
import math
import re
from typing import NamedTuple

from trainer.errors import UserError


class Core(NamedTuple):
    """One replica of TPUStrategy: a core, of which some chips have two."""

    hbm_bytes: int  # that the compiler lets a program use, by its own message
    peak_flops: float  # FLOP/s in bfloat16: the chip's, divided by its cores
    per_chip: int
    axes: int  # of the layout of chips
    most: int  # chips in a slice


# FLOP/s of a chip: Cloud TPU's documentation of each (docs.cloud.google.com/tpu/docs/v5e, …); for
# v2, Jouppi et al. 2020 (A Domain-Specific Supercomputer for Training Deep Neural Networks). HBM:
# the limit that libtpu 0.0.29 names when a program needs more.
_GIB = 2**30
CORES = {
    "v2": Core(int(7.48 * _GIB), 46e12 / 2, per_chip=2, axes=2, most=256),
    "v3": Core(int(15.48 * _GIB), 123e12 / 2, per_chip=2, axes=2, most=1024),
    "v4": Core(int(15.25 * _GIB), 275e12 / 2, per_chip=2, axes=3, most=4096),
    "v5e": Core(int(15.75 * _GIB), 197e12, per_chip=1, axes=2, most=256),
    "v5p": Core(int(95.74 * _GIB), 459e12, per_chip=1, axes=3, most=8960),
    "v6e": Core(int(31.25 * _GIB), 918e12, per_chip=1, axes=2, most=256),
}
# The layouts behind Cloud TPU's names of v5e and v6e, such as v5litepod-8, by the number of chips.
_LAYOUTS = {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}


class Slice(NamedTuple):
    """Chips that train together."""

    name: str  # the compiler's: v5e:2x4
    chips: int
    core: Core

    @property
    def num_replicas(self) -> int:
        return self.chips * self.core.per_chip


def parse_slice(text: str) -> Slice:
    """Returns a slice by its name, the generation and the layout of its chips: `v5e:2x4`.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    known = ", ".join(CORES)
    cloud = re.fullmatch(r"(v5litepod|v5e|v6e)-(\d+)", text)
    if cloud and int(cloud[2]) in _LAYOUTS:
        generation = cloud[1].replace("v5litepod", "v5e")
        raise UserError(
            f"--tpu={text}: is Cloud TPU's name; its chips are --tpu={generation}:"
            f"{_LAYOUTS[int(cloud[2])]}"
        )
    generation, colon, layout = text.partition(":")
    if generation in ("tpu7x", "v7x"):
        raise UserError(f"--tpu={text}: TensorFlow does not run on TPU7x; one of {known}")
    if generation not in CORES:
        if re.fullmatch(r"(v[2-4]|v5p)-\d+", generation):
            raise UserError(
                f"--tpu={text}: is Cloud TPU's name, and counts cores, of which a chip has two; "
                f"name the layout of its chips, such as v3:2x2 or v4:2x2x1"
            )
        near = difflib.get_close_matches(generation, CORES, n=1)
        hint = f"; did you mean {near[0]}?" if near else f": one of {known}, such as v5e:2x4"
        raise UserError(f"--tpu={text}: unknown generation {generation!r}{hint}")
    core = CORES[generation]
    example = "x".join(["2"] * core.axes) if core.axes == 2 else "2x2x1"
    if not colon or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{core.axes - 1}}}", layout):
        raise UserError(
            f"--tpu={text}: must name the layout of the chips on {core.axes} axes, such as "
            f"{generation}:{example}"
        )
    chips = math.prod(map(int, layout.split("x")))
    if chips > core.most:
        raise UserError(
            f"--tpu={text}: has {chips:,} chips, and {generation} at most {core.most:,}"
        )
    return Slice(text, chips, core)

"""`python -m trainer.preflight`: does the train step compile for a TPU slice, and fit? Without one.

python -m trainer.preflight --config=configs/imagenet_resnet50.py --tpu=v5e:2x4
"""

import json
import math
import sys

from absl import flags

from trainer import config as config_lib
from trainer.cli import command
from trainer.cli.flags import CONFIG, SET, TPU
from trainer.config import Config
from trainer.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from trainer.preflight import report
from trainer.preflight.compiler import (
    CompiledProgram,
    Deadline,
    OutOfMemory,
    Refused,
    TimeLimitError,
    check_environment,
    compile_program,
)
from trainer.preflight.search import find_fit
from trainer.preflight.slices import Slice, parse_slice

_GLOBAL_BATCH_SIZE = flags.DEFINE_integer(
    "global_batch_size", None, "In place of the config's data.global_batch_size.", lower_bound=1
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON, for programs.")
_TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s",
    3600.0,
    "For all compiling together, in seconds; looked at between two tries and while one compiles.",
    lower_bound=1,
    upper_bound=7 * 24 * 3600,
)
for _name in ("config", "set", "tpu"):
    flags.declare_key_flag(_name)


def preflight() -> int:
    """Compiles what the flags say, prints what came of it and returns the exit code: 0, or 2 where
    it does not fit."""
    if not TPU.value:
        raise UserError("--tpu=: must name a slice, as --tpu=v5e:2x4")
    target = parse_slice(TPU.value)
    if math.isnan(_TIME_LIMIT_S.value):
        raise UserError(f"--time_limit_s={_TIME_LIMIT_S.value}: must be a number of seconds")
    settings = [*SET.value]
    if _GLOBAL_BATCH_SIZE.value is not None:
        settings.append(f"data.global_batch_size={_GLOBAL_BATCH_SIZE.value}")
    config = config_lib.override(config_lib.load(CONFIG.value), settings)
    check_environment()
    try:
        return _preflight(config, target)
    except UserError as error:
        if _JSON.value:
            print(json.dumps({"status": "error", "error": str(error)}))
        raise


def _preflight(config: Config, target: Slice) -> int:
    """What needs TensorFlow, and minutes."""
    command.quiet_libraries()
    from trainer.devices.checks import check_batch_size, check_tpu
    from trainer.preflight.program import layer_of_reason, train_step_program

    check_tpu(config)
    check_batch_size(config, target.num_replicas)
    deadline = Deadline(_TIME_LIMIT_S.value)

    def compile_(config: Config) -> CompiledProgram | OutOfMemory:
        if deadline.left <= 0:
            raise TimeLimitError
        _say(config, target.num_replicas, deadline)
        program = train_step_program(config, target.num_replicas)
        result = compile_program(program, target.name, deadline)
        if isinstance(result, Refused):
            place = layer_of_reason(program, result.reason, result.op_name)
            raise UserError(f"{place}: the TPU's compiler refuses it: {result.reason[:300]}")
        return result

    try:
        result = compile_(config)
    except TimeLimitError:
        raise UserError(
            f"--time_limit_s={_TIME_LIMIT_S.value:g}: over before the program was compiled; give "
            f"it more"
        ) from None
    fits = isinstance(result, CompiledProgram)
    fit = None if fits else find_fit(config, target.num_replicas, compile_)
    render = report.as_json if _JSON.value else report.as_text
    print(render(config, target, result, fit))
    return EXIT_DONE if fits else EXIT_USER_ERROR


def _say(config: Config, num_replicas: int, deadline: Deadline) -> None:
    """What takes minutes, beside what is printed."""
    batch = config.data.global_batch_size // num_replicas // config.accumulation_steps
    parts = f" x {config.accumulation_steps}" if config.accumulation_steps > 1 else ""
    what = f"{config.model.name} for {batch}{parts} images a core"
    print(f"compiling {what}; {deadline.left:.0f} s left", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(preflight)

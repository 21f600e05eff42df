"""`python -m trainer.preflight`: compiles the train step for a TPU slice, on a machine without one.

    python -m trainer.preflight --config=configs/imagenet_resnet50.py --tpu=v5e:2x4

Prints memory and FLOPs per core. If the program does not fit, searches for a batch that does.
"""

import json
import math
import sys

from absl import flags

from trainer.cli import command
from trainer.cli.flags import ConfigFlags
from trainer.cli.quiet import quiet_start
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

FLAGS = flags.FlagValues()
_CONFIG = ConfigFlags(FLAGS)
_TPU = flags.DEFINE_string("tpu", "", "The slice, such as v5e:2x4.", flag_values=FLAGS)
_GLOBAL_BATCH_SIZE = flags.DEFINE_integer(
    "global_batch_size",
    None,
    "Replaces the config's data.global_batch_size.",
    lower_bound=1,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON, for programs.", flag_values=FLAGS)
_TIME_LIMIT_S = flags.DEFINE_float(
    "time_limit_s",
    3600.0,
    "Seconds for all compilations together; checked before and during each.",
    lower_bound=1,
    upper_bound=7 * 24 * 3600,
    flag_values=FLAGS,
)


def preflight() -> int:
    """Compiles according to the flags, prints the result and returns the exit code: 0, or 2 if the
    program does not fit."""
    try:
        return _preflight(*_request())
    except UserError as error:
        if _JSON.value:
            print(json.dumps({"status": "error", "error": str(error)}))
        raise


def _request() -> tuple[Config, Slice]:
    """Returns what the flags ask to compile, checked."""
    settings = []
    if _GLOBAL_BATCH_SIZE.value is not None:
        settings.append(f"data.global_batch_size={_GLOBAL_BATCH_SIZE.value}")
    config = _CONFIG.resolve(settings)
    if not _TPU.value:
        raise UserError("--tpu=: must name a slice, such as --tpu=v5e:2x4")
    target = parse_slice(_TPU.value)
    if math.isnan(_TIME_LIMIT_S.value):
        raise UserError(f"--time_limit_s={_TIME_LIMIT_S.value}: must be a number of seconds")
    if config.model.num_classes is None:
        raise UserError(
            "model.num_classes is none, and there are no data: --set model.num_classes=NUMBER"
        )
    check_environment()
    return config, target


def _preflight(config: Config, target: Slice) -> int:
    """Compiles, which needs TensorFlow and minutes, and prints the result."""
    with quiet_start():
        from trainer.devices.checks import check_batch_size, check_tpu
        from trainer.preflight.program import layer_of_reason, train_step_program

    check_tpu(config)
    check_batch_size(config, target.num_replicas)
    deadline = Deadline(_TIME_LIMIT_S.value)

    def compile_(config: Config) -> CompiledProgram | OutOfMemory:
        if deadline.left <= 0:
            raise TimeLimitError
        _report_start(config, target.num_replicas, deadline)
        program = train_step_program(config, target.num_replicas)
        result = compile_program(program, target.name, deadline)
        if isinstance(result, Refused):
            place = layer_of_reason(program, result.reason, result.op_name)
            raise UserError(f"{place}: the TPU's compiler rejects it: {result.reason[:300]}")
        return result

    try:
        result = compile_(config)
    except TimeLimitError:
        raise UserError(
            f"--time_limit_s={_TIME_LIMIT_S.value:g}: passed before the program was compiled; "
            f"raise it"
        ) from None
    fits = isinstance(result, CompiledProgram)
    fit = None if fits else find_fit(config, target.num_replicas, compile_)
    render = report.as_json if _JSON.value else report.as_text
    print(render(config, target, result, fit))
    return EXIT_DONE if fits else EXIT_USER_ERROR


def _report_start(config: Config, num_replicas: int, deadline: Deadline) -> None:
    """Prints what is being compiled, to stderr: it takes minutes."""
    batch = config.data.global_batch_size // num_replicas // config.accumulation_steps
    parts = f" x {config.accumulation_steps}" if config.accumulation_steps > 1 else ""
    what = f"{config.model.name} for {batch}{parts} images per core"
    print(f"compiling {what}; {deadline.left:.0f} s left", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.preflight", preflight, FLAGS)


if __name__ == "__main__":
    main()

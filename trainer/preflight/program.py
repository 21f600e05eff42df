"""The trainer's own train step as XLA's HLO, as a TPU slice would run it."""

import re

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.compiler.xla.service import hlo_pb2

from trainer.config import Config
from trainer.data.source import channels_of
from trainer.errors import UserError
from trainer.step.build import build_training

# The schedule's length changes constants of the program, not its size.
_STEPS_PER_EPOCH = 1000.0


class _SliceExtended(type(tf.distribute.OneDeviceStrategy("/CPU:0").extended)):
    """Like TPUStrategy's: `num_replicas` replicas, which reduce by XLA's all-reduce."""

    def __init__(self, strategy: tf.distribute.Strategy, num_replicas: int):
        super().__init__(strategy, "/CPU:0")
        self._replicas = num_replicas

    @property
    def _num_replicas_in_sync(self) -> int:
        return self._replicas

    def _use_merge_call(self) -> bool:
        return False

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        del options
        assert reduce_op == tf.distribute.ReduceOp.SUM, reduce_op
        group = [list(range(self._replicas))]
        return tf.nest.map_structure(
            lambda tensor: gen_xla_ops.xla_all_reduce(tensor, group, "Add", "CrossReplica"), value
        )


class SliceStrategy(tf.distribute.Strategy):
    """A stand-in for TPUStrategy without a TPU: it can trace a step, but not run one."""

    def __init__(self, num_replicas: int):
        super().__init__(_SliceExtended(self, num_replicas))


def train_step_program(config: Config, num_replicas: int) -> bytes:
    """Returns one replica's train step as a serialized HloModuleProto, with the all-reduces.

    Its parameters are the replica's number, the step, images, labels and the variables. Its results
    are the metrics and the variables, which replace their parameters in memory.

    Raises:
        UserError: if XLA cannot compile an operation, or a shape is not known before the step runs,
            with the layer; and if the data set's channels do not fit `data.mean`.
    """
    strategy = SliceStrategy(num_replicas)
    channels = channels_of(config)
    total_steps = max(1, round(config.num_epochs * _STEPS_PER_EPOCH))
    training = build_training(
        config, strategy, channels, _STEPS_PER_EPOCH, total_steps, compiled="tpu"
    )

    def step_of_replica(replica, step, images, labels):
        # A tensor, as in TPUStrategy: all replicas run the same program.
        with tf.distribute.ReplicaContext(strategy, replica):
            return training.replica_step(step, images, labels)

    batch_size = config.data.global_batch_size // num_replicas
    size = largest_image_size(config)
    mixed = [batch_size, config.model.num_classes], tf.float32
    specs = (
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([batch_size, size, size, channels], tf.uint8),
        tf.TensorSpec(*(mixed if config.augment.mixes else ([batch_size], tf.int32))),
    )
    compiled = tf.function(step_of_replica, jit_compile=True)
    compiled.get_concrete_function(*specs)  # an error here is a bug, and keeps its traceback
    try:
        # Without a TPU, TensorFlow has only the CPU's lowering.
        ir = compiled.experimental_get_compiler_ir(*specs)
        program = ir(stage="hlo_serialized", platform_name="CPU")
    except ValueError as error:
        raise _explained(str(error)) from None
    _check_shapes(program)
    return program


def largest_image_size(config: Config) -> int:
    """Returns the largest image size of the run, which takes the most memory."""
    return max((config.data.image_size, *config.data.train_sizes))


def layer_of(name: str) -> str:
    """Returns an operation's layer by its name, such as `resnet50/stage1_block1`; "" if in none."""
    parts = [part for part in name.split("/")[:-1] if not re.match(r"(gradient_tape|cond)", part)]
    return "/".join(parts)


def layer_of_reason(program: bytes, reason: str, op_name: str) -> str:
    """Returns the place in the model of a compiler's error: the operation that it names, or else
    the first of the kind that it names."""
    if op_name:
        return _place(op_name)
    words = set(re.findall(r"[\w-]+", reason.lower()))
    found = _instructions(program)
    named = [i for i in found if i.opcode in words and layer_of(i.metadata.op_name)]
    return _place(named[0].metadata.op_name) if named else "the train step"


def _explained(message: str) -> UserError:
    """Returns TensorFlow's error about a graph that XLA cannot compile, in one line."""
    if "transfer manager" in message:
        return UserError(
            f"TensorFlow {tf.__version__}: lacks XLA for CPUs, which exports the step, as "
            f"tensorflow-tpu does; run preflight with requirements.txt installed"
        )
    missing = re.search(r"No registered '(\w+)' OpKernel.*?{{node ([^}]+)}}", message, re.DOTALL)
    if missing:
        kind, name = missing.groups()
        return UserError(
            f"{kind} in {_place(name)}: cannot be compiled by XLA, so a TPU cannot run it; use "
            f"other operations, or do it in the input (trainer/data)"
        )
    node = re.search(r"{{node ([^}]+)}}", message)
    place = _place(node[1]) if node else "the train step"
    dynamic = ("compile-time constant", "dynamic", "not statically known", "unknown shape")
    if any(words in message for words in dynamic):
        return UserError(
            f"{place}: has a shape that depends on values, which a TPU cannot run; use a shape "
            f"that is known before the step ({_first_line(message)})"
        )
    return UserError(f"{place}: XLA cannot compile it ({_first_line(message)})")


def _check_shapes(program: bytes) -> None:
    """Raises UserError for the first shape that depends on values.

    XLA bounds some of them, but a TPU runs those slowly or not at all.
    """
    for instruction in _instructions(program):
        if any(instruction.shape.is_dynamic_dimension):
            made = instruction.metadata
            raise UserError(
                f"{made.op_type} in {_place(made.op_name)}: has a shape that depends on values, "
                f"which a TPU cannot run; use a shape that is known before the step"
            )


def _instructions(program: bytes) -> list[hlo_pb2.HloInstructionProto]:
    module = hlo_pb2.HloModuleProto.FromString(program)
    return [i for computation in module.computations for i in computation.instructions]


def _place(name: str) -> str:
    layer = layer_of(name)
    return f"layer {layer} ({name})" if layer else f"the train step ({name})"


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0][:300]

"""The training, from top to bottom."""

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config, with_num_classes
from trainer.data.bad_examples import BadExamples
from trainer.data.pipeline import first_bad_in_evaluation, first_bad_in_training, train_input
from trainer.data.source import open_source
from trainer.devices.checks import check_batch_in_epoch, check_batch_size, check_placement
from trainer.devices.compilation import choose_compilation
from trainer.devices.strategy import checkpoint_device
from trainer.errors import PreemptedError
from trainer.failures import bad_examples_reported, out_of_memory_reported, training_memory_advice
from trainer.run import divergence
from trainer.run.agreement import check_same_start, make_agreement
from trainer.run.checkpoint import Checkpoints, run_metadata
from trainer.run.description import describe
from trainer.run.evaluation import make_evaluate
from trainer.run.folder import RunFolder
from trainer.run.initial_weights import load_initial_weights
from trainer.run.length import run_length
from trainer.run.log import RunLog, read_records
from trainer.run.memory_check import check_memory
from trainer.run.pace import Pace
from trainer.run.signals import StopRequest
from trainer.run.stopwatch import Stopwatch
from trainer.step.build import build_training
from trainer.step.train_step import TrainMetrics


class Summary(NamedTuple):
    """How a run ended."""

    best_accuracy: float
    last_accuracy: float
    images_per_second: float  # of this process's training, without the first loop's tracing
    train_seconds: float  # of this process's train loops, without evaluation and checkpoints


def train_and_evaluate(
    config: Config,
    strategy: tf.distribute.Strategy,
    folder: RunFolder,
    data_dir: str,
    stopwatch: Stopwatch | None = None,
) -> Summary:
    """Trains `config` to the end, from where the run in `folder` stands.

    Args:
        stopwatch: started with the process, to report the time to the first step.

    Raises:
        UserError: for a mistake in the config, the data or the environment.
        PreemptedError: after SIGTERM or Ctrl-C, with everything saved.
        DivergedError: on a loss or gradient that is not finite; the last checkpoint is kept.
    """
    stopwatch = stopwatch or Stopwatch()
    # 1. Signals, before anything else: from here on, a signal saves before it ends the run.
    stop = StopRequest()

    # 2. Data, before the model: a mistake in them shows sooner.
    num_replicas = strategy.num_replicas_in_sync
    check_batch_size(config, num_replicas)
    compilation = choose_compilation(config, strategy)
    train_source = open_source(config, config.data.train_split, data_dir)
    as_given, config = config, with_num_classes(config, train_source.class_names)
    eval_source = open_source(config, config.data.eval_split, data_dir)
    check_placement(strategy, config, train_source.in_graph and eval_source.in_graph)
    length = run_length(config, len(train_source))
    steps_per_epoch, total_steps = length.steps_per_epoch, length.total_steps
    agree = make_agreement(strategy)
    sizes = len(train_source), len(eval_source), len(train_source.class_names)
    check_same_start(agree, 0, *sizes)  # before one worker alone refuses its data
    check_batch_in_epoch(config, num_replicas, len(train_source))
    stopwatch.lap("data")

    # 3. State and loops, and the state's values: new, or where the last process left them.
    state, _, train_loop = build_training(
        config,
        strategy,
        train_source.channels,
        steps_per_epoch,
        total_steps,
        compilation.compiled,
    )
    metadata = run_metadata(as_given, train_source)
    checkpoints = Checkpoints(
        folder.checkpoints,
        state,
        metadata,
        config.keep_checkpoints,
        folder.is_chief,
        checkpoint_device(strategy),
    )
    restored = checkpoints.restore()
    step = restored or 0
    check_same_start(agree, step, *sizes)
    loaded = load_initial_weights(config, state, agree, is_new=restored is None)
    if folder.is_chief:
        folder.write_config(metadata)

    with RunLog(folder, step, length) as log:
        log.say(describe(config, strategy, state, *sizes[:2]))
        log.say(compilation.reason)
        log.say(f"logs and checkpoints: {folder.path}")
        log.say(f"from step {step} of {total_steps}" if step else f"{total_steps} steps{loaded}")
        if step == 0 and config.on_divergence == "rollback":
            checkpoints.save(0)  # to roll back to, before there is another one
        stopwatch.lap("build")

        # 4. Input from this step on, and the traces.
        bad_examples = BadExamples(folder.path, log.say)

        def input_from(step: int) -> Iterator:
            at_size = length.config_at(step)
            return iter(train_input(at_size, strategy, train_source, step, bad_examples))

        iterator = input_from(step)
        evaluate = make_evaluate(config, strategy, state, eval_source, bad_examples)
        if step < total_steps:
            loop = train_loop.get_concrete_function(iterator, tf.constant(1)).graph
            part, channels = compilation.compiled, train_source.channels
            check_memory(config, strategy, part, state, channels, loop, log.say)
        stopwatch.lap("trace")

        # 5. Train, loop by loop. At the end of each loop: write, evaluate if due, save if due. In
        # this order, so that a checkpoint never counts a step as done whose record may be lost.
        pace = Pace(config.steps_per_loop)
        last_save = time.monotonic()
        while step < total_steps:
            next_eval, next_size = length.next_evaluation(step), length.next_image_size(step)
            num_steps = int(min(pace.loop_steps, next_eval - step, next_size - step))
            started = time.monotonic()
            # The count is a tensor, so that all lengths share one trace. numpy() waits for the
            # device, so that an error, such as a lack of memory, belongs to this loop.
            first_bad = partial(first_bad_in_training, config, train_source, step, num_steps)
            with (
                out_of_memory_reported(*training_memory_advice(config, num_replicas)),
                bad_examples_reported(config, first_bad),
            ):
                metrics = train_loop(iterator, tf.constant(num_steps))
                metrics = TrainMetrics(*(values.numpy() for values in metrics))
            seconds = time.monotonic() - started
            step += num_steps
            if not pace.seconds:
                stopwatch.lap("first loop, with compiling")
                log.say(f"from the command to here: {stopwatch}")
                log.event("startup", step - num_steps, stopwatch.laps)
            traces = train_loop.experimental_get_tracing_count()
            pace.add(num_steps, seconds, traces)
            images_per_second = num_steps * config.data.global_batch_size / seconds
            log.train(step, metrics, seconds, images_per_second, traces)

            found = divergence.find(config, state, train_source, step, metrics)
            if found is not None:
                log.event("divergence", found.step, found._asdict())
                step = divergence.stop_or_roll_back(config, state, checkpoints, found)
                check_same_start(agree, step, *sizes)
                log.rewind(step)
                log.say(f"diverged: {found}; continuing from step {step}, without that batch")
                iterator = input_from(step)
                continue

            # Clocks and signals differ between workers; what follows must not.
            save_due = time.monotonic() - last_save >= config.checkpoint_every_s
            stop_sum, save_sum, seconds = agree([float(stop.requested), float(save_due), seconds])

            if step == next_eval:
                with (
                    out_of_memory_reported(
                        f"data.eval_batch_size ({config.data.eval_batch_size})", "lower it"
                    ),
                    bad_examples_reported(
                        config, partial(first_bad_in_evaluation, config, eval_source)
                    ),
                ):
                    values = evaluate()
                log.evaluation(step, values)
                accuracy = max(v for name, v in values.items() if name.endswith("top1_accuracy"))
                if accuracy > state.best_accuracy.numpy():
                    state.best_accuracy.assign(accuracy)
                    log.flush()
                    checkpoints.save_best(step)
            if stop_sum > 0 or save_sum > 0 or step == total_steps:
                log.flush()
                checkpoints.save(step)
                last_save = time.monotonic()
            if stop_sum > 0 and step < total_steps:
                del iterator
                raise PreemptedError(f"saved at step {step} of {total_steps}")
            if step == next_size:
                iterator = input_from(step)
            pace.adapt(num_steps, seconds)

    del iterator  # before its dataset and its devices: other orders were seen to take 40 s
    last = read_records(folder.metrics, "eval")[-1:]
    return Summary(
        best_accuracy=float(state.best_accuracy.numpy()),
        last_accuracy=last[0]["top1_accuracy"] if last else math.nan,
        images_per_second=pace.steps_per_second * config.data.global_batch_size,
        train_seconds=pace.seconds,
    )

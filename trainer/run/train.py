"""The training, from top to bottom."""

import math
import time
from collections.abc import Iterator, MutableMapping, Sequence
from functools import partial

import tensorflow as tf

from trainer.config import Config
from trainer.data import decoder_log
from trainer.data.bad_examples import BadExamples
from trainer.data.pipeline import first_bad_in_training, train_input
from trainer.data.splits.split import Split
from trainer.devices.checks import check_batch_in_epoch, check_batch_size
from trainer.devices.compilation import choose_compilation
from trainer.devices.strategy import checkpoint_device
from trainer.errors import PreemptedError
from trainer.failures import bad_examples_reported, out_of_memory_reported, training_memory_advice
from trainer.models.weights.identity import weights_identity
from trainer.run import divergence
from trainer.run.agreement import Agreement, check_same_start
from trainer.run.best import Best
from trainer.run.checkpoint import Checkpoints
from trainer.run.data import open_data
from trainer.run.description import describe
from trainer.run.evaluation import make_evaluate
from trainer.run.folder import RunFolder
from trainer.run.identity import run_metadata
from trainer.run.initial_weights import load_initial_weights
from trainer.run.length import run_length
from trainer.run.log import RunLog, read_records
from trainer.run.memory_check import check_memory
from trainer.run.pace import Pace
from trainer.run.progress import Phase
from trainer.run.signals import StopRequest
from trainer.run.stopwatch import Stopwatch
from trainer.run.summary import Summary
from trainer.step.build import build_training
from trainer.step.train_step import TrainMetrics


def train_and_evaluate(
    config: Config,
    strategy: tf.distribute.Strategy,
    folder: RunFolder,
    data_dir: str,
    stopwatch: Stopwatch | None = None,
    found_splits: MutableMapping[str, Split] | None = None,
    changes: Sequence[str] = (),
) -> Summary:
    """Trains `config` to the end, from where the run in `folder` stands.

    Args:
        stopwatch: started with the process, to report the time to the first step.
        found_splits: of the data already, see `open_data`.
        changes: lines for the user about what has changed since the run began.

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
    as_given = config
    data, config = open_data(config, strategy, data_dir, found_splits)
    train_source, splits = data.train.source, data.splits
    length = run_length(config, len(train_source))
    steps_per_epoch, total_steps = length.steps_per_epoch, length.total_steps
    agreement = Agreement(strategy)
    check_same_start(agreement, 0, *splits)  # before one worker alone refuses its data
    check_batch_in_epoch(config, num_replicas, len(train_source))
    metadata = run_metadata(as_given, *splits, weights_identity(config.model.weights))
    changes = [*changes, *folder.refuse_another_run(metadata)]
    metadata = folder.as_it_began(metadata)
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
    check_same_start(agreement, step, *splits)
    names = train_source.class_names
    loaded = load_initial_weights(config, names, state, agreement, is_new=restored is None)
    best = checkpoints.read_best()
    if folder.is_chief:
        folder.write_config(metadata)

    with RunLog(folder, step, length) as log:
        stop.progress = log.progress
        lines = [describe(config, strategy, state, *splits), compilation.reason]
        lines += [f"logs and checkpoints: {folder.path}", *changes]
        lines += [f"from step {step} of {total_steps}" if step else f"{total_steps} steps{loaded}"]
        log.say("\n".join(lines))
        if step == 0 and config.on_divergence == "rollback":
            checkpoints.save(0)  # to roll back to, before there is another one
        stopwatch.lap("build")

        # 4. Input from this step on, and the traces.
        bad_examples = BadExamples(folder.path, log.say)

        def input_from(step: int) -> Iterator:
            at_size = length.config_at(step)
            return iter(train_input(at_size, strategy, train_source, step, bad_examples))

        iterator = input_from(step)
        evaluate = None
        if data.evaluation is not None:
            evaluate = make_evaluate(
                config, strategy, state, data.evaluation.source, bad_examples, checkpoints.exist
            )
        if step < total_steps:
            with log.doing(Phase.TRACING):
                loop = train_loop.get_concrete_function(iterator, tf.constant(1)).graph
            part, channels = compilation.compiled, train_source.channels
            check_memory(config, strategy, part, state, channels, loop, log.say)
        stopwatch.lap("trace")

        # 5. Train, loop by loop. At the end of each loop: write, evaluate if due, save if due. In
        # this order, so that a checkpoint never counts a step as done whose record may be lost.
        pace = Pace(config.steps_per_loop)
        last_save = time.monotonic()
        phase = Phase.FIRST_LOOP
        while step < total_steps:
            next_eval, next_size = length.next_evaluation(step), length.next_image_size(step)
            num_steps = int(min(pace.loop_steps, next_eval - step, next_size - step))
            started = time.monotonic()
            # The count is a tensor, so that all lengths share one trace. numpy() waits for the
            # device, so that an error, such as a lack of memory, belongs to this loop.
            first_bad = partial(first_bad_in_training, config, train_source, step, num_steps)
            with (
                log.doing(phase),
                out_of_memory_reported(*training_memory_advice(config, num_replicas)),
                bad_examples_reported(config, first_bad, checkpoints.exist),
            ):
                metrics = train_loop(iterator, tf.constant(num_steps))
                metrics = TrainMetrics(*(values.numpy() for values in metrics))
            seconds = time.monotonic() - started
            step += num_steps
            phase = Phase.TRAINING
            if not pace.seconds:
                stopwatch.lap("first loop, with compiling")
                log.say(f"from the command to here: {stopwatch}")
                log.event("startup", step - num_steps, stopwatch.laps)
            traces = train_loop.experimental_get_tracing_count()
            pace.add(num_steps, seconds, traces)
            images_per_second = num_steps * config.data.global_batch_size / seconds
            log.train(step, metrics, seconds, images_per_second, traces, pace.steps_per_second)

            found = divergence.find(config, state, train_source, step, metrics)
            if found is not None:
                log.event("divergence", found.step, found._asdict())
                step = divergence.stop_or_roll_back(config, state, checkpoints, found)
                check_same_start(agreement, step, *splits)
                log.rewind(step)
                log.say(f"diverged: {found}; continuing from step {step}, without that batch")
                iterator = input_from(step)
                continue

            # Clocks and signals differ between workers; what follows must not.
            save_due = time.monotonic() - last_save >= config.checkpoint_every_s
            stop_sum, save_sum, seconds = agreement.mean(
                [float(stop.requested), float(save_due), seconds]
            )

            if step == next_eval:
                if evaluate is not None:
                    with log.doing(Phase.EVALUATING):
                        values = evaluate()
                    log.evaluation(step, values)
                    best = _keep_if_better(Best.of(values, step), best, checkpoints, log)
                log.say(decoder_log.first_note(config.data, data_dir))
            if stop_sum > 0 or save_sum > 0 or step == total_steps:
                with log.doing(Phase.SAVING):
                    log.flush()
                    checkpoints.save(step)
                last_save = time.monotonic()
            if stop_sum > 0 and step < total_steps:
                del iterator
                raise PreemptedError(f"saved at step {step} of {total_steps}")
            if step == next_size:
                iterator, phase = input_from(step), Phase.FIRST_LOOP
            pace.adapt(num_steps, seconds)

    del iterator  # before its dataset and its devices: other orders were seen to take 40 s
    last = read_records(folder.metrics, "eval")[-1:]
    return Summary(
        best_accuracy=best.accuracy if evaluate else math.nan,
        last_accuracy=last[0]["top1_accuracy"] if last else math.nan,
        images_per_second=pace.steps_per_second * config.data.global_batch_size,
        train_seconds=pace.seconds,
    )


def _keep_if_better(found: Best, best: Best, checkpoints: Checkpoints, log: RunLog) -> Best:
    """Saves the state if its evaluation is the best so far. Returns the better of the two."""
    if not found.beats(best):
        return best
    log.flush()
    with log.doing(Phase.SAVING_BEST):
        checkpoints.save_best(found)
    return found

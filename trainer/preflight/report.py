"""`trainer.preflight`'s report on a compiled train step, as text and as JSON. No TensorFlow."""

import json
from typing import Any

from trainer.config import Config
from trainer.preflight.compiler import CompiledProgram, OutOfMemory
from trainer.preflight.search import Fit
from trainer.preflight.slices import Slice
from trainer.units import bytes_text

# What a pass does not show; `_shown` is what it does. Both are in every report.
NOT_SHOWN = (
    "Not shown: that it runs. No TPU was used. The graph is lowered by the CPU's kernel "
    "definitions. It lacks TPUStrategy's own wrapping, the evaluation, the input, and the batches "
    "that wait in HBM. The image of a slice of several hosts may have another libtpu."
)


def as_text(
    config: Config, target: Slice, result: CompiledProgram | OutOfMemory, fit: Fit | None
) -> str:
    """Returns the report as a few lines. All figures are per core, which is a replica."""
    replica_batch = config.data.global_batch_size // target.num_replicas
    split = f" in {config.accumulation_steps} parts" if config.accumulation_steps > 1 else ""
    lines = [
        f"{config.model.name}, {config.precision}, on {target.name}: {target.num_replicas} "
        f"replica(s) of {replica_batch:,} images{split}, global batch "
        f"{config.data.global_batch_size:,}"
    ]
    if isinstance(result, OutOfMemory):
        needed = (
            f"at least {bytes_text(result.needed_bytes, 2)}"
            if result.needed_bytes
            else "more than all"
        )
        lines.append(
            f"does not fit    needs {needed} of {bytes_text(target.core.hbm_bytes, 2)} of HBM per "
            f"core ({_time(result)})"
        )
        if fit is not None:
            lines += _fit_lines(config, target, fit)
        return "\n".join(lines)
    lines += [f"compiles        {_time(result)}", *_figures(target, result)]
    return "\n".join([*lines, _shown(target, result), NOT_SHOWN])


def as_json(
    config: Config, target: Slice, result: CompiledProgram | OutOfMemory, fit: Fit | None
) -> str:
    """Returns the report as JSON. Bytes, FLOPs and seconds are per core and step."""
    compiles = isinstance(result, CompiledProgram)
    values: dict[str, Any] = {
        "status": "compiled" if compiles else "out_of_memory",
        "slice": target.name,
        "num_replicas": target.num_replicas,
        "model": config.model.name,
        "precision": config.precision,
        "global_batch_size": config.data.global_batch_size,
        "per_replica_batch_size": config.data.global_batch_size // target.num_replicas,
        "accumulation_steps": config.accumulation_steps,
        "fits": compiles,
        "hbm_bytes": target.core.hbm_bytes,
    }
    values |= result._asdict()
    if compiles:
        values["step_seconds_flop_lower_bound"] = result.flops / target.core.peak_flops
        values |= {"shown": _shown(target, result), "not_shown": NOT_SHOWN}
    if fit is not None:
        values["largest_micro_batch_size"] = fit.largest
        values["smallest_micro_batch_size_that_does_not_fit"] = fit.smallest_failed
        values["search_complete"] = fit.complete
        values["fits_with_accumulation_steps"] = fit.accumulation_steps
        values["with_accumulation"] = fit.compiled._asdict() if fit.compiled else None
    return json.dumps(values, indent=1)


def _figures(target: Slice, result: CompiledProgram) -> list[str]:
    peak = target.core.peak_flops
    lines = [
        f"peak HBM        {bytes_text(result.peak_bytes, 2)} of "
        f"{bytes_text(target.core.hbm_bytes, 2)} per core",
        f"FLOPs           {result.flops:.3g} per step and core",
        f"all-reduces     {result.all_reduces}, {bytes_text(result.all_reduce_bytes)} in total",
        f"step time       at least {result.flops / peak * 1e3:.3g} ms: the FLOPs at the peak of "
        f"{peak / 1e12:.4g} TFLOP/s, a lower bound, not an estimate",
    ]
    if result.recomputed:
        lines.append(
            f"recomputes      {result.recomputed} operations to save memory: accumulation may be "
            f"faster"
        )
    return lines


def _fit_lines(config: Config, target: Slice, fit: Fit) -> list[str]:
    parts = target.num_replicas * config.accumulation_steps
    lines = []
    if fit.largest:
        lines.append(
            f"what fits       {fit.largest} images at a time ({fit.smallest_failed} do not): --set "
            f"data.global_batch_size={fit.largest * parts}"
        )
    elif fit.complete:
        lines.append(f"what fits       not even {fit.smallest_failed} image(s) at a time")
    if not fit.complete:
        lines.append("                the time limit passed: --time_limit_s raises it")
    if fit.accumulation_steps and fit.compiled:
        lines += [
            f"the same batch  with --set accumulation_steps={fit.accumulation_steps} (batch norm "
            f"sees each part), compiled ({_time(fit.compiled)}):",
            *(f"  {line}" for line in _figures(target, fit.compiled)),
            _shown(target, fit.compiled),
            NOT_SHOWN,
        ]
    return lines


def _shown(target: Slice, result: CompiledProgram) -> str:
    return (
        f"Shown: XLA's program of this train step, all-reduces included, compiles for "
        f"{target.name} with the compiler of libtpu {result.versions['libtpu']}, in this much "
        f"memory."
    )


def _time(result: CompiledProgram | OutOfMemory) -> str:
    kept = ", from the cache" if result.cached else ""
    return f"in {result.compile_seconds:.0f} s{kept}"

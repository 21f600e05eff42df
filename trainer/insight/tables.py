"""Tables of `trainer.inspect`: for a terminal, as Markdown, as JSON."""

import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from trainer.config import Config
from trainer.insight.anatomy import Row, anatomy
from trainer.insight.feature_maps import Activations
from trainer.insight.memory import TrainingMemory, kept_by_layer, training_graph, training_memory
from trainer.models.build import build_model
from trainer.units import bytes_text, count_text

# Columns of a table: without a terminal, and at least in one.
_WIDTH, _LEAST = 132, 88
_PRECISIONS = ("float32", "mixed_bfloat16")
_COLUMNS = ("output", "parameters", "mult-adds", "activations", "field")
_EXAMPLE_BATCH = 32  # images; the tables show their memory as an example


class Report(NamedTuple):
    """The figures in a model's tables."""

    config: Config
    channels: int
    rows: list[Row]
    activation_bytes: dict[str, int]  # kept for the backward pass of an image, by the row's name
    memory: dict[str, TrainingMemory]  # by precision


def make_report(config: Config, channels: int) -> Report:
    """Builds the model in each precision, and examines it."""
    memory = {}
    kept: dict[str, int] = {}
    rows: list[Row] = []
    for precision in dict.fromkeys((config.precision, *_PRECISIONS)):
        at_precision = dataclasses.replace(config, precision=precision)
        model = build_model(at_precision, channels)
        graph = training_graph(at_precision, model, channels)
        memory[precision] = training_memory(at_precision, model, graph)
        if precision == config.precision:
            rows, kept = anatomy(model, config.data.image_size, channels), kept_by_layer(graph)
    return Report(config, channels, rows, kept, memory)


def render(report: Report, memory: int, style: str) -> str:
    """Returns the report as text.

    Args:
        memory: in bytes; the report has the largest training batch that fits.
        style: `table`, `md` or `json`.
    """
    config = report.config
    if style == "json":
        return json.dumps(_as_dict(report, memory), indent=1) + "\n"
    size = config.data.image_size
    title = f"{config.model.name}, images {size}x{size}x{report.channels}, {config.precision}"
    header = ("", *_COLUMNS)
    lines = [_cells(*line) for line in _lines(report)]
    notes = [
        f"activations: memory that the forward pass keeps for the backward pass, for one image in "
        f"{config.precision}",
        "field: the receptive field's width and height, in pixels of the image",
        *_fits(report, memory),
    ]
    return _render_table(title, header, lines, notes, style)


def _fits(report: Report, memory: int) -> list[str]:
    """Returns notes on the largest batch in this many bytes, for each precision."""
    config = report.config
    return [
        f"{config.model.name} in {bytes_text(memory)}, training with {config.optimizer.name} "
        f"(estimate; without the process itself, 0.7 GiB on a CPU):",
        *(
            f"  {precision}: {one.batch_that_fits(memory):,} images at a time; "
            f"{_EXAMPLE_BATCH} take {bytes_text(one.at(_EXAMPLE_BATCH))}"
            for precision, one in report.memory.items()
        ),
    ]


class _Line(NamedTuple):
    """A line of the table: a stage, one of its blocks, or the total."""

    title: str
    output: Sequence[int]
    parameters: int
    multiply_adds: int
    activation_bytes: int
    receptive_field: int | None


def _cells(title: str, output, parameters, multiply_adds, activation_bytes, field) -> list[str]:
    return [
        title,
        "x".join(map(str, output)),
        f"{parameters:,}",
        count_text(multiply_adds),
        bytes_text(activation_bytes),
        "all" if field is None else f"{field}",
    ]


def _lines(report: Report) -> list[_Line]:
    """Returns a line for each stage and each of its blocks, and the total."""
    lines = []
    for stage, group in itertools.groupby(report.rows, key=lambda row: row.stage):
        rows = list(group)
        lines.append(_sum(stage, rows, report))
        if len(rows) > 1:
            lines += [_sum(f"  {row.name}", [row], report) for row in rows]
    lines.append(_sum("total", report.rows, report))
    return lines


def _sum(title: str, rows: Sequence[Row], report: Report) -> _Line:
    return _Line(
        title,
        rows[-1].output,
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows),
        # The total includes what is kept outside of the direct layers.
        sum(report.activation_bytes.values())
        if rows is report.rows
        else sum(report.activation_bytes.get(row.name, 0) for row in rows),
        rows[-1].receptive_field,
    )


def _as_dict(report: Report, memory: int) -> dict[str, Any]:
    config = report.config
    total = _sum("total", report.rows, report)
    return {
        "model": config.model.name,
        "image_size": config.data.image_size,
        "channels": report.channels,
        "num_classes": config.model.num_classes,
        "precision": config.precision,
        "rows": [
            {**row._asdict(), "activation_bytes": report.activation_bytes.get(row.name, 0)}
            for row in report.rows
        ],
        "total": {
            "parameters": total.parameters,
            "multiply_adds": total.multiply_adds,
            "activation_bytes": total.activation_bytes,
        },
        "training_memory_estimate": {
            precision: {
                "in_bytes": memory,
                "batch_that_fits": one.batch_that_fits(memory),
                "bytes_with_32_images": one.at(_EXAMPLE_BATCH),
            }
            for precision, one in report.memory.items()
        },
    }


def render_difference(first: Report, second: Report, memory: int, style: str) -> str:
    """Returns two models as text, compared stage by stage."""
    names = [report.config.model.name for report in (first, second)]
    if style == "json":
        both = [_as_dict(report, memory) for report in (first, second)]
        return json.dumps({"models": both}, indent=1) + "\n"
    stages = [
        {line.title: line for line in _lines(report) if not line.title.startswith(" ")}
        for report in (first, second)
    ]
    titles = [title for title in dict.fromkeys([*stages[0], *stages[1]]) if title != "total"]
    lines = []
    for title in [*titles, "total"]:
        pair = [one.get(title) for one in stages]
        for letter, line in zip("AB", pair, strict=True):
            cells = ["-"] * 5 if line is None else _cells(*line)[1:]
            ratio = _ratio(pair) if letter == "B" else ""
            lines.append([f"{title} {letter}", *cells, ratio])
    header = ("", *_COLUMNS, "B / A")
    notes = [
        "B / A: the ratio of multiply-adds",
        *_fits(first, memory),
        *_fits(second, memory),
    ]
    return _render_table(f"A: {names[0]}, B: {names[1]}", header, lines, notes, style)


def _ratio(pair: Sequence[_Line | None]) -> str:
    first, second = pair
    if first is None or second is None or not first.multiply_adds:
        return "-"
    return f"{second.multiply_adds / first.multiply_adds:.2f}"


def render_activations(config: Config, found: list[Activations], style: str) -> str:
    """Returns the statistics of the stages' outputs as text."""
    if style == "json":
        stages = {one.stage: {"output": list(one.values.shape), **one.statistics} for one in found}
        return json.dumps({"model": config.model.name, "stages": stages}, indent=1) + "\n"
    lines = []
    for one in found:
        values = one.statistics
        shape = "x".join(map(str, one.values.shape))
        zeros = f"{100 * values['zeros']:.1f} %"
        lines.append([one.stage, shape, f"{values['mean']:.4g}", f"{values['std']:.4g}", zeros])
    header = ("stage", "output", "mean", "std", "zeros")
    return _render_table(config.model.name, header, lines, [], style)


def _render_table(
    title: str,
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    notes: Sequence[str],
    style: str,
) -> str:
    """Returns Markdown, or a table for the terminal, with colours if stdout is one."""
    if style == "md":
        rows = [header, ["---", *("---:" for _ in header[1:])], *lines]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return "\n\n".join([f"**{title}**", table, *notes]) + "\n"
    terminal = Console()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal.is_terminal,
        width=max(terminal.width, _LEAST) if terminal.is_terminal else _WIDTH,
        highlight=False,
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for line in lines:
        is_part = line[0].startswith(" ")
        table.add_row(*line, style="dim" if is_part else "")
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    return text.getvalue()

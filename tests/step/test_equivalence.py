"""One computation, many ways: strategies, precisions, XLA, accumulation, averages.

The model has no batch norm, so a part of a batch computes the same as within the whole. Batch norm
is tested in test_train_step.py.
"""

import itertools
import json
import sys

import numpy as np
import pytest

from tests.conftest import skip_without_xla, strategy_of
from tests.step_runs import Case, play
from tests.workers import finish, start_workers

_FACTORS = (
    ("one_device", "mirrored 2", "mirrored 4", "workers 2"),
    ("float32", "mixed_bfloat16", "mixed_float16"),
    ("xla=off", "xla=on"),
    ("accumulation_steps=1", "accumulation_steps=2"),
    ("ema_decay=none", "ema_decay=0.9"),
)
# A pairwise cover: any two values of two factors occur together in a row.
_ROWS = (
    ("one_device", "float32", "xla=on", "accumulation_steps=1", "ema_decay=none"),
    ("one_device", "mixed_bfloat16", "xla=off", "accumulation_steps=1", "ema_decay=0.9"),
    ("one_device", "mixed_float16", "xla=on", "accumulation_steps=2", "ema_decay=none"),
    ("mirrored 2", "float32", "xla=on", "accumulation_steps=2", "ema_decay=0.9"),
    ("mirrored 2", "mixed_bfloat16", "xla=on", "accumulation_steps=1", "ema_decay=none"),
    ("mirrored 2", "mixed_float16", "xla=off", "accumulation_steps=1", "ema_decay=none"),
    ("mirrored 4", "float32", "xla=off", "accumulation_steps=2", "ema_decay=none"),
    ("mirrored 4", "mixed_bfloat16", "xla=on", "accumulation_steps=2", "ema_decay=0.9"),
    ("mirrored 4", "mixed_float16", "xla=off", "accumulation_steps=1", "ema_decay=0.9"),
    ("workers 2", "float32", "xla=off", "accumulation_steps=2", "ema_decay=none"),
    ("workers 2", "mixed_bfloat16", "xla=on", "accumulation_steps=1", "ema_decay=0.9"),
    ("workers 2", "mixed_float16", "xla=on", "accumulation_steps=1", "ema_decay=0.9"),
)
_IN_MAKE_TEST = _ROWS[1], _ROWS[3], _ROWS[8]
_STEPS = 10
# Relative to the distance that ten steps move a tensor; a lost part would be off by 0.25 or more.
# float32: sums in another order. Half precision, seen up to 0.044: gradients are rounded once per
# replica and micro-batch, TensorFlow's kernels keep some sums in it too, and XLA rounds in other
# places than oneDNN.
_TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 0.06, "mixed_float16": 0.06}


def _case(row) -> Case:
    _, precision, *settings = row
    common = [
        "model.name=tests.small_models.convnet",
        "data.image_size=8",
        "optimizer.warmup_epochs=0",
    ]
    # The model has no batch norm; synchronised batch norm would exclude XLA on CPU replicas.
    common += ["model.sync_batch_norm=false", "initial_loss_scale=1024", f"precision={precision}"]
    return Case((*common, *settings), (_STEPS,))


def _reference(row):
    precision, ema = row[1], row[4]
    return ("one_device", precision, "xla=off", "accumulation_steps=1", ema)


@pytest.fixture(scope="module")
def reference(digits):
    """Returns the values of one device, without XLA and in one micro-batch."""
    made = {}

    def values(row):
        key = _reference(row)
        if key not in made:
            made[key] = play(_case(key), digits, strategy_of(1))
        return made[key]

    return values


def _assert_equivalent(values, expected, tolerance: float) -> None:
    assert values.keys() == expected.keys()
    np.testing.assert_allclose(values["metrics loss"], expected["metrics loss"], rtol=tolerance)
    assert values["metrics applied"].all()
    start = {n.removeprefix("before "): v for n, v in expected.items() if n.startswith("before")}
    moving = [n for n, v in start.items() if v.ndim and v.dtype == np.float32]
    assert len(moving) >= 12  # at least weights and momenta
    for name in moving:
        moved, wanted = (of[f"after 0 {name}"] - start[name] for of in (values, expected))
        assert np.linalg.norm(wanted) > 0, name
        assert np.linalg.norm(moved - wanted) < tolerance * np.linalg.norm(wanted), name


def test_the_rows_cover_all_pairs():
    pairs = list(itertools.combinations(range(len(_FACTORS)), 2))
    covered = {(i, j, row[i], row[j]) for row in _ROWS for i, j in pairs}
    wanted = {(i, j, a, b) for i, j in pairs for a in _FACTORS[i] for b in _FACTORS[j]}
    assert covered == wanted


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row in _IN_MAKE_TEST else pytest.mark.slow)
        for row in _ROWS
        if row[0] != "workers 2"
    ],
    ids=" ".join,
)
def test_it_is_one_computation(digits, reference, row):
    if "xla=on" in row:
        skip_without_xla()
    replicas = int(row[0].split()[-1]) if " " in row[0] else 1
    values = play(_case(row), digits, strategy_of(replicas))
    _assert_equivalent(values, reference(row), _TOLERANCE[row[1]])


def _play_on_workers(cases: dict[str, Case], number: int, folder, data_dir) -> list[dict]:
    """Returns each rank's values of each case, by name."""
    command = [sys.executable, "-m", "tests.step_runs", json.dumps(cases), str(folder), data_dir]
    finish(start_workers([command] * number), 0)
    return [
        {name: dict(np.load(folder / f"{name}-{rank}.npz")) for name in cases}
        for rank in range(number)
    ]


# One rank of two, one micro-batch of two, the third step: rows 48 to 63 of 64.
_OVERFLOW = Case(
    (
        *(
            "model.name=tests.small_models.overflowing",
            "data.image_size=8",
            "precision=mixed_float16",
        ),
        *("accumulation_steps=2", "ema_decay=0.9", "data.crop=none", "data.pad=0"),
    ),
    (2, 1, 1),
    (2, 50),
)


def _assert_skipped(values) -> None:
    assert values["metrics applied"].tolist() == [1, 1, 0, 1]
    assert values["metrics loss_scale"].tolist() == [2**15, 2**15, 2**15, 2**14]
    assert np.isfinite(values["metrics loss"]).all()
    assert not np.isfinite(values["metrics gradient_norm"][2])
    names = [n.removeprefix("after 0 ") for n in values if n.startswith("after 0 ")]
    same = {n for n in names if np.array_equal(values[f"after 0 {n}"], values[f"after 1 {n}"])}
    # Weights, momenta and averages: everything but the counters and the scale.
    assert all(values[f"after 0 {n}"].ndim == 0 for n in set(names) - same)
    assert sum("momentum" in n for n in same) == 6
    moved = [n for n in same if not np.array_equal(values[f"after 0 {n}"], values[f"after 2 {n}"])]
    assert len(moved) >= 18  # the next step is applied: weights, momenta, averages


def test_an_overflow_on_one_replica_skips_the_step_on_all(digits):
    _assert_skipped(play(_OVERFLOW, digits, strategy_of(2)))


@pytest.mark.slow
def test_workers_compute_the_same_and_skip_together(digits, reference, data_dir, tmp_path):
    rows = {str(index): row for index, row in enumerate(_ROWS) if row[0] == "workers 2"}
    cases = {name: _case(row) for name, row in rows.items()} | {"overflow": _OVERFLOW}
    ranks = _play_on_workers(cases, 2, tmp_path, data_dir)
    for name, row in rows.items():
        for rank in ranks:
            _assert_equivalent(rank[name], reference(row), _TOLERANCE[row[1]])
    for rank in ranks:
        _assert_skipped(rank["overflow"])
    for name, values in ranks[0]["overflow"].items():
        np.testing.assert_array_equal(values, ranks[1]["overflow"][name], name)

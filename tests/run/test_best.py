"""Which evaluation is the best: by accuracy, then by loss."""

import math

from trainer.run.best import Best


def values(accuracy: float, loss: float, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}top1_accuracy": accuracy, f"{prefix}loss": loss}


def test_a_higher_accuracy_is_better_and_a_tie_goes_to_the_lower_loss():
    first = Best.of(values(0.9, 1.0), 10)
    assert first.beats(Best())
    assert Best.of(values(0.91, 3.0), 20).beats(first)
    assert Best.of(values(0.9, 0.6), 20).beats(first)
    assert not Best.of(values(0.9, 1.0), 20).beats(first)  # a step that is trained again
    assert not Best.of(values(0.89, 0.1), 20).beats(first)
    assert not Best.of(values(0.9, math.nan), 20).beats(first)


def test_the_record_says_whose_the_best_is():
    raw, average = values(0.9, 1.0), values(0.85, 0.5, "ema_")
    assert Best.of(raw | average, 5) == Best(0.9, 1.0, 5, "raw")
    assert Best.of(raw | values(0.9, 0.5, "ema_"), 5) == Best(0.9, 0.5, 5, "average")


def test_a_record_survives_json():
    for best in (Best(), Best(0.1, 2.0, 7, "average")):
        assert Best.from_json(best.to_json()) == best

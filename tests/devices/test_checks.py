"""The batch size against the training set, and the least that replicas and parts allow."""

import dataclasses

import pytest

from tests.conftest import with_data
from tests.devices.common import message
from trainer.config import AugmentConfig, Config
from trainer.devices.checks import check_batch_in_epoch, check_batch_size
from trainer.errors import UserError


def config_of(batch: int, accumulation_steps: int, mixup: float, repeats: int = 1) -> Config:
    return dataclasses.replace(
        with_data(Config(), global_batch_size=batch, repeats=repeats),
        accumulation_steps=accumulation_steps,
        augment=AugmentConfig(mixup=mixup),
    )


def is_sound(config: Config, replicas: int) -> bool:
    try:
        check_batch_size(config, replicas)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("mixup", [0.0, 0.2])
@pytest.mark.parametrize(("replicas", "parts"), [(1, 1), (2, 1), (1, 4), (4, 3), (3, 5)])
def test_the_largest_batch_of_an_epoch_is_suggested(replicas, parts, mixup):
    """Found by trying every size."""
    sizes = [n for n in range(1, 82) if is_sound(config_of(n, parts, mixup), replicas)]
    check_batch_in_epoch(config_of(sizes[-1], parts, mixup), replicas, num_examples=81)
    with pytest.raises(UserError) as caught:
        check_batch_in_epoch(config_of(320, parts, mixup), replicas, num_examples=81)
    assert message(caught) == (
        "data.global_batch_size (320) is more than an epoch has: 81 training examples; the largest "
        f"is --set data.global_batch_size={sizes[-1]}"
    )


def test_repeated_examples_count():
    check_batch_in_epoch(config_of(240, 1, 0, repeats=3), 1, num_examples=80)
    with pytest.raises(UserError) as caught:
        check_batch_in_epoch(config_of(320, 1, 0, repeats=3), 1, num_examples=80)
    assert message(caught).endswith(
        "80 training examples times data.repeats (3); the largest is --set "
        "data.global_batch_size=240"
    )


def test_too_few_examples_for_any_batch():
    with pytest.raises(UserError) as caught:
        check_batch_in_epoch(config_of(16, 4, 0), 4, num_examples=15)
    assert message(caught) == (
        "data.global_batch_size (16) is more than an epoch has: 15 training examples; the least "
        "for 4 replica(s) times accumulation_steps (4) is 16: use fewer of them, or more examples"
    )

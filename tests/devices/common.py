"""What the tests of TPUs share."""

import pytest

from trainer.errors import UserError

LIBTPU = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text

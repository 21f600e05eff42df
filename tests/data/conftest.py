"""Data that the tests of several files read."""

from pathlib import Path

import pytest

from tests.photo_files import write_photos


@pytest.fixture(scope="session")
def photo_folder(photos, tmp_path_factory) -> Path:
    """Photos in folders of classes, 12 of each to train on and 5 to evaluate; to be copied, not
    changed."""
    return write_photos(tmp_path_factory.mktemp("photos"), photos, train=12, val=5)

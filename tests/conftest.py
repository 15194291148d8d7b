"""What all tests share: real data where it is, quiet progress, modest property tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("sailkit", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sailkit")
os.environ["SAILKIT_PROGRESS"] = "off"  # before any test, and for the processes that tests start


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and recordings, which are never part of this repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SAILKIT_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data, and {folder} is absent; set SAILKIT_SHARED_DATA")
    return folder

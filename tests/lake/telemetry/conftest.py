"""What the tests of decoding share: the real telemetry, and the bounds they run under."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lakerunner_dagster.lake.settings import Limits


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder ``otlp`` of real telemetry: under ``LAKERUNNER_REAL_DATA``, else ``../shared/data``; skips without."""
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("LAKERUNNER_REAL_DATA", default)) / "otlp"
    if not folder.is_dir():
        pytest.skip(f"no real telemetry at {folder}: set LAKERUNNER_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def limits() -> Limits:
    """The default bounds, whatever the environment says."""
    return Limits.model_construct()

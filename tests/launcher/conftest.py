"""A platform for the launcher's tests: one for those that leave it as it was, one of its own for those that do not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TestDatabases
from tests.launcher.platform import Launching, code_of, forking, launching, place_in

Open = Callable[..., Launching]


def _launching(directory: Path, url: str, config: dict[str, Any]) -> AbstractContextManager[Launching]:
    place = place_in(directory, url, forking(**config))
    return launching(place, code_of(place))


@contextmanager
def _platform(postgres: TestDatabases, **config: Any) -> Iterator[Launching]:
    url = postgres.create_database()
    before = dict(os.environ)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="lakerunner-test-") as directory,
            _launching(Path(directory), url, config) as running,
        ):
            yield running
    finally:
        os.environ.clear()
        os.environ.update(before)
    postgres.server.drop_database(url.rpartition("/")[2])


@pytest.fixture(scope="module")
def shared(postgres: TestDatabases) -> Iterator[Launching]:
    """A platform that the tests of a module share."""
    with _platform(postgres) as running:
        yield running


@pytest.fixture
def opened(postgres: TestDatabases) -> Iterator[Open]:
    """Opens a platform of the test's own, with what it configures of the launcher."""
    with ExitStack() as stack:
        yield lambda **config: stack.enter_context(_platform(postgres, **config))

"""What every command needs: the settings' database, and a terminal to print on.

What belongs here: opening and closing. What does not: any command.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.runs.context import Lake, lrdb_url, open_lake
from lakerunner_dagster.lake.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lakerunner_dagster.lake.lrdb.connection import Conn

WIDTH_OF_FILES = 160
"""Columns of output that goes to a file or a pipe, which wraps nothing by itself."""

console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)


@contextmanager
def lrdb_snapshot() -> Iterator[Conn]:
    """A read-only look at one moment of the settings' lrdb."""
    with Lrdb(lrdb_url(Settings()), max_size=1) as lrdb, lrdb.snapshot() as conn:
        yield conn


@contextmanager
def lrdb_transaction() -> Iterator[Conn]:
    """A transaction on the settings' lrdb, committed at the end of the block."""
    with Lrdb(lrdb_url(Settings()), max_size=1) as lrdb, lrdb.transaction() as conn:
        yield conn


@contextmanager
def opened_lake() -> Iterator[Lake]:
    """The settings' lake, for the length of the block."""
    lake = open_lake(Settings())
    try:
        yield lake
    finally:
        lake.close()

"""What every command needs: the settings' database, and a terminal to print on.

What belongs here: opening and closing, and text of others made fit for a terminal. What does not: any command.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.console import Console
from rich.text import Text

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.migrate import pending_migrations
from lakerunner_dagster.lake.runs.context import Lake, lrdb_url, open_lake
from lakerunner_dagster.lake.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lakerunner_dagster.lake.lrdb.connection import Conn

WIDTH_OF_FILES = 160
"""Columns of a table that goes to a file or a pipe, which wraps nothing by itself."""

CONNECT_SECONDS = 5
"""How long a person is kept waiting for a server that says nothing."""

console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, markup=False, highlight=False)


def say(*parts: str | Text | tuple[str, str]) -> None:
    """Print one line, or as many as it has; a terminal wraps it, and what is copied from there is whole.

    A part is plain text of others, ``(text, style)``, or a Text.
    """
    line = Text.assemble(*(shown(part) if isinstance(part, str) else part for part in parts))
    console.print(line, soft_wrap=True)


def shown(text: str) -> Text:
    """Text of others, as a terminal can show it: what it would obey, or show as nothing, stands there escaped."""
    return Text("".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text))


def without_key(error_text: str, key: str) -> str:
    """An error's text without the key that it begins with, where that stands above already."""
    return error_text.removeprefix(f"{key}: ")


def reachable_url(url: str) -> str:
    """The URL of a database, with a bound on the time that connecting may take."""
    try:
        bounded = "connect_timeout" in conninfo_to_dict(url)
    except ProgrammingError:
        # The error may hold the URL, and so a password.
        raise ConfigurationError("a database's URL cannot be read: it is postgresql://user@host:port/name") from None
    return url if bounded else make_conninfo(url, connect_timeout=CONNECT_SECONDS)


def require_schema(settings: Settings) -> str:
    """URL of the settings' lrdb, once it has answered and has the schema of this code.

    Asked for directly: a pool would try for long, and not say why it fails.
    """
    url = reachable_url(lrdb_url(settings))
    pending = pending_migrations(url)
    if pending:
        raise ConfigurationError(
            f"lrdb's schema is not that of this version ({', '.join(pending)} not applied): "
            "run `lakerunner lrdb migrate`"
        )
    return url


@contextmanager
def lrdb_snapshot() -> Iterator[Conn]:
    """A read-only look at one moment of the settings' lrdb."""
    with Lrdb(require_schema(Settings()), max_size=1) as lrdb, lrdb.snapshot() as conn:
        yield conn


@contextmanager
def lrdb_connection() -> Iterator[Conn]:
    """A connection to the settings' lrdb, in which each statement commits by itself."""
    with Lrdb(require_schema(Settings()), max_size=1) as lrdb, lrdb.connection() as conn:
        yield conn


@contextmanager
def lrdb_transaction() -> Iterator[Conn]:
    """A transaction on the settings' lrdb, committed at the end of the block."""
    with Lrdb(require_schema(Settings()), max_size=1) as lrdb, lrdb.transaction() as conn:
        yield conn


@contextmanager
def opened_lake() -> Iterator[Lake]:
    """The settings' lake, for the length of the block."""
    settings = Settings()
    lake = open_lake(settings)
    try:
        require_schema(settings)
        yield lake
    finally:
        lake.close()

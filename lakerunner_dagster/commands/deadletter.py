"""``lakerunner deadletter``: notifications that lead nowhere, why, sending them again, and discarding them.

What belongs here: the commands and their text. What does not: the letters (``lake.lrdb.dead_letters``), what becomes of
them (``lake.notifications.replay``).
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lakerunner_dagster.commands.session import lrdb_snapshot, lrdb_transaction, opened_lake, say, without_key
from lakerunner_dagster.lake.errors import RequestRefused, WorkIncomplete
from lakerunner_dagster.lake.lrdb import dead_letters
from lakerunner_dagster.lake.lrdb.quarantine import LARGEST_ID
from lakerunner_dagster.lake.notifications.replay import Replayed, replay, waiting

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.dead_letters import DeadLetter

app = typer.Typer(no_args_is_help=True, help="Notifications that lead nowhere: dead letters.")

REASON = Annotated[str | None, typer.Option("--reason", help="Only letters of this reason (`list` counts them).")]


@app.command("list")
def list_letters(
    reason: REASON = None,
    limit: Annotated[int, typer.Option(help="Most letters that are shown.", min=1)] = 50,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")] = False,
) -> None:
    """Dead letters that wait, the latest first, and how many there are of each reason."""
    with lrdb_snapshot() as conn:
        letters = (dead_letters.kept if everything else dead_letters.waiting)(conn, limit, reason=reason)
        counts = dead_letters.count_waiting(conn)
    for letter in letters:
        _say_letter(letter)
    if len(letters) == limit:
        say((f"there may be more: these are the latest {limit}, --limit shows others", "dim"))
    say(f"{sum(counts.values()):,} dead letters wait: {_counted(counts)}" if counts else "no dead letter waits")


def _say_letter(letter: DeadLetter) -> None:
    times = f", {letter.times:,} times" if letter.times > 1 else ""
    replayed = f", replayed {letter.replayed_at:%Y-%m-%d %H:%M:%S}" if letter.replayed_at else ""
    discarded = f", discarded {letter.discarded_at:%Y-%m-%d %H:%M:%S}" if letter.discarded_at else ""
    say(
        *((str(letter.dead_letter_id), "bold"), "  ", (letter.reason, "red")),
        f"  {letter.adapter or letter.topic}{times}{replayed}{discarded}",
    )
    say(f"  {letter.key}")
    say("  ", (without_key(letter.error_text, letter.key), "dim"))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


@app.command()
def show(letter_id: Annotated[int, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)]) -> None:
    """Everything that is known of one dead letter, as JSON."""
    with lrdb_snapshot() as conn:
        found = dead_letters.show(conn, letter_id)
    say(json.dumps(asdict(found), default=str, indent=2, ensure_ascii=False))


@app.command("replay")
def replay_letters(
    ids: Annotated[list[int] | None, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)] = None,
    reason: REASON = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All letters that wait.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would become of them, and send none.")] = False,
) -> None:
    """Send dead letters again: some by their ids, or all that wait, or those of a reason.

    What leads somewhere now is passed on, the others stay. Exit code 1 where any still leads nowhere.
    """
    _require_one_way(ids, reason, everything=everything)
    with opened_lake() as lake:
        if ids:
            with lake.lrdb.connection() as conn:
                batches = iter([[dead_letters.show(conn, one) for one in dict.fromkeys(ids)]])
        else:
            batches = waiting(lake.lrdb, reason)
        done = replay(lake.lrdb, lake.bus, lake.settings, batches, dry_run=dry_run)
    _tell(done, dry_run=dry_run)


@app.command()
def discard(
    because: Annotated[str, typer.Option(help="Why: it is kept with the letters.")],
    ids: Annotated[list[int] | None, typer.Argument(metavar="ID", min=1, max=LARGEST_ID)] = None,
    reason: REASON = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All letters that wait.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many there are, and discard none.")] = False,
) -> None:
    """Discard dead letters that can never be taken: some by their ids, or all that wait, or those of a reason.

    They wait no more, also when they come again; `list --all` and `show` have them, with who, when and why.
    """
    _require_one_way(ids, reason, everything=everything)
    if not because.strip():
        raise RequestRefused("say --because of what: it is kept with the letters")
    with lrdb_transaction() as conn, conn.transaction(force_rollback=dry_run):
        for one in ids or ():
            dead_letters.show(conn, one)
        done = dead_letters.discard(conn, _who(), because.strip(), ids=ids or None, reason=reason)
    counted = f": {_counted(done)}" if done else ""
    say(f"{sum(done.values()):,} dead letters {'would be' if dry_run else 'were'} discarded{counted}")


def _who() -> str:
    """The person, as far as this machine knows."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _require_one_way(ids: list[int] | None, reason: str | None, *, everything: bool) -> None:
    if sum((bool(ids), reason is not None, everything)) != 1:
        raise RequestRefused("name the letters by their ids, or by --reason, or take --all: one of these")


def _tell(done: Replayed, *, dry_run: bool) -> None:
    if done.passed_on or not done.stay:
        say(f"{done.passed_on:,} dead letters {'would be' if dry_run else 'were'} passed on")
    if done.stay:
        raise WorkIncomplete(
            f"{done.stay.total():,} of the dead letters still lead nowhere: {_counted(done.stay)}; "
            "`lakerunner deadletter list` shows them"
        )

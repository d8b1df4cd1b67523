"""What would break if a person could not see which news leads nowhere, and send it again once it leads somewhere."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from lakerunner_dagster.lake.signals import Signal
from tests.command_line import done, lakerunner, refused
from tests.lake.requests import logs
from tests.lake.world import NOON_MS, World

OTHER = UUID("deadbeef-0000-4000-8000-000000000000")
ELSEWHERE = f"otel-raw/{OTHER}/edge/logs/a"


@pytest.fixture
def letters(world: World) -> None:
    """Three letters that wait: two without a route, then one of an unknown organization that was seen twice."""
    world.notify("backup/x", "backup/y")
    for _ in range(2):
        path = world.place.bucket / ELSEWHERE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(logs("late", [NOON_MS]))
        world.notify(ELSEWHERE)


@pytest.mark.usefixtures("letters")
def test_letters_are_listed_with_reasons_and_counted() -> None:
    lines = done("deadletter", "list").splitlines()
    assert lines[:2] == ["3  unknown_organization  test, 2 times", f"  lake/{ELSEWHERE}"]
    assert f"no organization has the id {OTHER}" in lines[2]
    assert lines[-1] == "3 dead letters wait: 2 no_route, 1 unknown_organization"
    short = done("deadletter", "list", "--limit", "1", "--reason", "no_route")
    assert "lake/backup/y" in short
    assert "backup/x" not in short
    assert "the latest 1, --limit shows others" in short
    shown = json.loads(done("deadletter", "show", "3"))
    assert (shown["reason"], shown["times"], shown["body"]["k"]) == ("unknown_organization", 2, ELSEWHERE)
    assert "no dead letter 9" in refused("deadletter", "show", "9")


@pytest.mark.usefixtures("letters")
def test_what_leads_somewhere_now_is_passed_on_and_the_rest_is_told_by_the_exit_code(world: World) -> None:
    stays = "3 of the dead letters still lead nowhere: 2 no_route, 1 unknown_organization"
    assert stays in refused("deadletter", "replay", "--all")
    done("organization", "add", "globex", "--id", str(OTHER))
    assert done("deadletter", "replay", "3", "--dry-run") == "1 dead letters would be passed on\n"
    ended = lakerunner("deadletter", "replay", "--all")
    assert (ended.code, ended.out) == (1, "1 dead letters were passed on\n")
    assert "2 of the dead letters still lead nowhere: 2 no_route" in ended.err
    assert "unknown_organization" not in done("deadletter", "list")
    assert "3  unknown_organization  test, 2 times, replayed 20" in done("deadletter", "list", "--all")
    world.box(Signal.LOGS)
    assert world.query("SELECT key FROM raw_objects") == [(ELSEWHERE,)]


@pytest.mark.usefixtures("letters")
def test_a_replay_says_which_letters_it_is_for() -> None:
    for arguments in ((), ("3", "--all"), ("3", "--reason", "no_route"), ("--all", "--reason", "no_route")):
        assert "one of these" in refused("deadletter", "replay", *arguments)
    assert "no dead letter 9" in refused("deadletter", "replay", "9")
    assert done("deadletter", "replay", "--reason", "too_many_collectors") == "0 dead letters were passed on\n"


@pytest.mark.usefixtures("letters")
def test_what_can_never_be_taken_is_discarded_and_it_is_known_by_whom_and_why(world: World) -> None:
    discard = ("deadletter", "discard", "--because", "a\x1b typo")
    assert "one of these" in refused(*discard)
    assert "one of these" in refused(*discard, "1", "--all")
    assert "no dead letter 9" in refused(*discard, "1", "9")
    assert "kept with the letters" in refused("deadletter", "discard", "1", "--because", " ")
    assert done(*discard, "--all", "--dry-run") == (
        "3 dead letters would be discarded: 2 no_route, 1 unknown_organization\n"
    )
    assert "3 dead letters wait" in done("deadletter", "list")
    assert done(*discard, "1") == "1 dead letters were discarded: 1 no_route\n"
    assert done(*discard, "--reason", "no_route") == "1 dead letters were discarded: 1 no_route\n"
    world.notify("backup/x", "backup/y")
    assert done("deadletter", "list").splitlines()[-1] == "1 dead letters wait: 1 unknown_organization"
    assert "1  no_route  test, 2 times, discarded 20" in done("deadletter", "list", "--all")
    shown = json.loads(done("deadletter", "show", "1"))
    assert shown["discarded_because"] == "a\x1b typo"
    assert "@" in shown["discarded_by"]
    assert done(*discard, "1") == "0 dead letters were discarded\n"


@pytest.mark.usefixtures("letters")
def test_the_quarantine_says_where_the_letters_are_and_shows_none() -> None:
    assert done("quarantine", "list").splitlines() == [
        "nothing is set aside",
        "3 dead letters wait: `lakerunner deadletter list`",
    ]

"""What would break if a stranger's bytes could stop the lake, lose a record of others, or vanish unexplained."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from lakerunner_dagster.commands.session import shown
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.model import RawState, dateint_of
from lakerunner_dagster.lake.runs.drain import drain
from lakerunner_dagster.lake.settings import MiB
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import ingest_stage
from tests.command_line import done, refused
from tests.lake.hostile.conftest import Aftermath
from tests.lake.hostile.inputs import (
    DEAD,
    GOOD_LOGS,
    GOOD_TRACES,
    NOBODY,
    ODD_NAMES,
    RAW,
    Raw,
    log_request,
    record,
    stored,
)
from tests.lake.world import NOON_MS, World

MISSING = {"object_missing"}


def state_of(raw: Raw) -> RawState:
    """The state in which a raw object must have ended."""
    if raw.reason is None:
        return RawState.INGESTED
    return RawState.MISSING if raw.reason in MISSING else RawState.QUARANTINED


def blocks(listing: str) -> dict[str, str]:
    """By item, the lines that `quarantine list` prints of it."""
    found: dict[str, str] = {}
    item = ""
    for line in listing.splitlines():
        if not line.startswith(" "):
            item = line.split()[0]
        found[item] = f"{found.get(item, '')}{line}\n"
    return found


def listed_items() -> dict[str, str]:
    """By item, what is said of everything that is set aside."""
    return blocks(done("quarantine", "list", "--limit", "500"))


def item_of(world: World, key: str) -> str:
    ((number,),) = world.query("SELECT max(raw_object_id) FROM raw_objects WHERE key = %s", key)
    return f"raw:{number}"


def test_each_object_ends_as_it_must_and_all_of_them_in_one_box(aftermath: Aftermath) -> None:
    ended = {
        (signal, key): (state, read, rejected, error_class)
        for signal, key, state, read, rejected, error_class in aftermath.world.query(
            "SELECT signal, key, state, records_read, rejected, error_class FROM raw_objects"
        )
    }
    assert ended == {
        (str(raw.signal), raw.key): (
            str(state_of(raw)),
            raw.accepted + sum(raw.rejected.values()),
            dict(raw.rejected),
            raw.reason,
        )
        for raw in RAW
    }
    assert {signal: len(steps) for signal, steps in aftermath.steps.items()} == dict.fromkeys(Signal, 1)


def test_nothing_is_lost_and_nothing_is_left_over(aftermath: Aftermath) -> None:
    world = aftermath.world
    report = json.loads(aftermath.answer.text)
    assert report["produced"] == len(RAW)
    assert report["dead_letters"] == Counter(dead.reason for dead in DEAD)
    for signal in Signal:
        accepted = sum(raw.accepted for raw in RAW if raw.signal is signal)
        counted = "sum(chq_points)::bigint" if signal is Signal.METRICS else "count(*)"
        assert world.select(signal, counted) == [(accepted,)]
        assert world.records(signal) == accepted
    assert world.query("SELECT count(*) FROM boxes WHERE state <> 'done'") == [(0,)]
    assert world.breaches() == []


def test_every_record_of_the_good_files_is_published_as_it_was(aftermath: Aftermath) -> None:
    messages = aftermath.world.messages()
    for good in GOOD_LOGS.resource_logs[0].scope_logs[0].log_records:
        assert messages[good.body.string_value] == 2  # of two good files
    for raw in RAW:
        if raw.signal is Signal.LOGS and raw.accepted == 1 and not raw.rejected and raw.reason is None:
            assert messages[raw.name] == 1


def test_each_bad_object_is_found_by_a_person_with_its_reason(aftermath: Aftermath) -> None:
    listed = listed_items()
    for raw in (raw for raw in RAW if raw.reason or raw.rejected):
        block = listed[item_of(aftermath.world, raw.key)]
        assert shown(raw.key).plain in block
        assert (raw.reason or max(raw.rejected, key=lambda reason: raw.rejected[reason])) in block
        for reason, count in raw.rejected.items():
            assert f"{count} {reason}" in block
        assert raw.told in block


def test_what_is_kept_of_a_bad_object_names_it_and_the_reason(aftermath: Aftermath) -> None:
    one_of_each = {raw.reason: raw for raw in RAW if raw.reason}
    for reason, raw in one_of_each.items():
        kept = json.loads(done("quarantine", "show", item_of(aftermath.world, raw.key)))
        assert (kept["raw"]["key"], kept["state"], kept["error_class"]) == (raw.key, str(state_of(raw)), reason)
        assert raw.key in kept["error_text"], "the error does not name its object"
        assert raw.told in kept["error_text"]


@pytest.mark.usefixtures("aftermath")
def test_each_notification_that_leads_nowhere_is_found_by_a_person() -> None:
    listed = done("deadletter", "list")
    ids = re.findall(r"^([0-9]+)  [a-z]", listed, re.MULTILINE)
    kept = {letter["body"]["k"]: letter for letter in (json.loads(done("deadletter", "show", one)) for one in ids)}
    assert kept.keys() == {dead.key for dead in DEAD}
    for dead in DEAD:
        letter = kept[dead.key]
        assert letter["reason"] == dead.reason
        assert dead.told in letter["error_text"]
        assert f"{letter['dead_letter_id']}  {dead.reason}  " in listed


def test_a_good_object_is_in_no_list_and_its_lineage_is_whole(aftermath: Aftermath) -> None:
    listed = listed_items()
    good = [raw for raw in RAW if not raw.reason and not raw.rejected and raw.accepted]
    assert not listed.keys() & {item_of(aftermath.world, raw.key) for raw in good}
    for name in ("good-1.gz", *ODD_NAMES[:8]):
        (raw,) = (raw for raw in good if raw.name == name and raw.signal is Signal.LOGS)
        given = re.findall(r"^  ([0-9]+) records? \u2192 db/", done("lineage", raw.key), re.MULTILINE)
        assert sum(map(int, given)) == raw.accepted


def test_what_is_no_event_is_refused_and_leaves_nothing(aftermath: Aftermath) -> None:
    rows = "SELECT (SELECT count(*) FROM raw_objects), (SELECT count(*) FROM dead_letters)"
    before = aftermath.world.query(rows)
    huge = aftermath.sender.post(b'{"Records": []}' + b" " * (2 * MiB))
    assert (huge.status, "1048576 bytes" in huge.text) == (413, True)
    for body in (b'{"hello": "world"}', b"[]", b"null", b'"' + b"x" * 1000 + b'"', b"\xff\xfe", b"[" * 100_000):
        answer = aftermath.sender.post(body)
        assert answer.status == 400
        assert json.loads(answer.text)["message"]
    assert aftermath.world.query(rows) == before


def test_an_object_that_was_replaced_by_a_good_one_is_ingested_when_it_is_retried(aftermath: Aftermath) -> None:
    world = aftermath.world
    mended = next(raw for raw in RAW if raw.name == "truncated.gz" and raw.signal is Signal.LOGS)
    item = item_of(world, mended.key)
    good = stored(log_request(record("mended")))
    world.put(mended.signal, mended.name, good)
    assert "1 of the objects wait for a box again" in done("quarantine", "retry", item)
    world.ingest(Signal.LOGS)  # finds another content than was notified
    world.ingest(Signal.LOGS)  # takes that in
    assert world.messages()["mended"] == 1
    assert world.query("SELECT state, error_class FROM raw_objects WHERE key = %s ORDER BY 1", mended.key) == [
        ("ingested", None),
        ("missing", "overwritten"),
    ]
    assert "1 record →" in done("lineage", mended.key)
    assert world.breaches() == []


def test_an_object_that_came_after_all_is_ingested_when_it_is_retried(aftermath: Aftermath) -> None:
    world = aftermath.world
    gone = next(raw for raw in RAW if raw.name == "gone.gz" and raw.signal is Signal.TRACES)
    item = item_of(world, gone.key)
    world.put(gone.signal, gone.name, stored(GOOD_TRACES))
    done("quarantine", "retry", item)
    before = world.records(gone.signal)
    world.ingest(gone.signal)
    world.ingest(gone.signal)
    assert world.records(gone.signal) == before + 50
    assert "50 records" in done("lineage", gone.key)
    assert world.breaches() == []


def test_a_stranger_who_becomes_a_tenant_is_ingested_when_replayed(aftermath: Aftermath) -> None:
    world = aftermath.world
    stranger = next(dead for dead in DEAD if str(NOBODY) in dead.key)
    again = ("deadletter", "replay", "--reason", "unknown_organization")
    assert stranger.key in done("deadletter", "list")
    assert "still lead nowhere" in refused(*again)
    done("organization", "add", "stranger", "--id", str(NOBODY))
    assert done(*again) == "1 dead letters were passed on\n"
    assert stranger.key not in done("deadletter", "list")
    with world.lake.lrdb.connection() as conn:
        source = profiles.source_by_key(conn, "stranger/edge")
    assert source is not None
    world.box(Signal.LOGS)
    drain(world.lake, ingest_stage(Signal.LOGS), source, dateint_of(NOON_MS), run_id="run", on_step=lambda _step: None)
    assert world.messages()["from a stranger"] == 1
    assert world.breaches() == []

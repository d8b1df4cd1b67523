"""Dagster shows a source until nobody needs it: what still has anything stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.lrdb import profiles
from lakerunner_dagster.lake.maintenance.report import Order, Report
from lakerunner_dagster.lake.maintenance.sources import sources
from lakerunner_dagster.lake.signals import Signal
from tests.lake.maintenance.turns import AT_ONCE, LATER_MS, add_source, turn
from tests.lake.requests import logs
from tests.lake.world import NOON_MS, ORGANIZATION, World


@dataclass
class Shown:
    """The partitions of a Dagster that is none."""

    shown: list[str] = field(default_factory=list)

    def keys(self) -> list[str]:
        return list(self.shown)

    def remove(self, key: str) -> None:
        self.shown.remove(key)


def take(world: World, shown: Shown, *, dry_run: bool = False) -> Report:
    return sources(world.lake, AT_ONCE, Order(dry_run=dry_run, now_ms=LATER_MS, partitions=shown))


def disable(world: World) -> None:
    with world.lake.lrdb.transaction() as conn:
        profiles.enable_organization(conn, ORGANIZATION, enabled=False)


def test_a_source_that_lrdb_does_not_know_is_removed(world: World) -> None:
    add_source(world, "globex", uuid4(), "edge")
    shown = Shown(["acme/edge", "acme/edge1", "globex/edge", "gone/edge"])
    assert take(world, shown, dry_run=True).counts == {"removed from Dagster": 2}
    assert len(shown.keys()) == 4
    assert take(world, shown).counts == {"removed from Dagster": 2}
    assert shown.keys() == ["acme/edge", "globex/edge"]


@pytest.mark.parametrize("boxed", [False, True])
def test_a_disabled_tenants_source_stays_until_nothing_is_left_or_under_way(world: World, boxed: bool) -> None:  # noqa: FBT001
    shown = Shown(["acme/edge"])
    world.send(Signal.LOGS, "a", logs("a", [NOON_MS]))
    if boxed:
        world.box(Signal.LOGS)
    else:
        world.ingest(Signal.LOGS)
    disable(world)
    assert take(world, shown).counts == {}
    world.drain(Signal.LOGS)
    with world.lake.lrdb.transaction() as conn:
        profiles.set_retention(conn, ORGANIZATION, Signal.LOGS, 1)
    turn(world.lake, "retention")
    assert take(world, shown).counts == {}, "its object is still there"
    turn(world.lake, "superseded")
    assert take(world, shown).counts == {"removed from Dagster": 1}


def test_without_a_dagster_the_job_says_what_it_needs(world: World) -> None:
    with pytest.raises(ConfigurationError, match="DAGSTER_HOME"):
        turn(world.lake, "sources")

"""``python -m bench.week``: a simulated week, its table and its plot.

What belongs here: the course of the week, what must hold at its end, and showing it. What does not: its parts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

from bench.cpu import Clock, backends
from bench.week import clock
from bench.week.compaction import Compaction, Took, stores
from bench.week.cost import Cost
from bench.week.days import Day
from bench.week.traffic import SIZES, Feed, Ingest
from lakerunner_dagster.lake.lrdb import check, debt, profiles
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.lrdb.migrate import migrate
from lakerunner_dagster.lake.model import HOUR_MS, Source, day_start_ms
from lakerunner_dagster.lake.planning.compaction import FULL
from lakerunner_dagster.lake.runs.context import Lake
from lakerunner_dagster.lake.settings import BoxPolicy, CompactionPolicy, Limits, Settings
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.store import BucketConfiguration
from lakerunner_dagster.local.postgres import PostgresServer

if TYPE_CHECKING:
    from lakerunner_dagster.lake.bus import Bus

BEGIN_MS = day_start_ms(20260301)
DAY_MS = 24 * HOUR_MS
TENDED_MS = 3 * HOUR_MS
"""A virtual day passes in minutes: autovacuum, which goes by real time, would come to its tables a few times only."""

ORGANIZATIONS = 4
AFTERMATH_LOOKS = 100
"""Looks after the last file, within which compaction must come to rest."""

FLAT = 1.2
"""By so much may a day's ticks be slower than the second's: the first has no past, and warms the caches."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the simulation; exit code 1 where something does not hold at its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=20)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="where to write the plot (.svg)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="lakerunner-week-") as directory:
        Path(directory).chmod(0o711)
        server = PostgresServer(Path(directory) / "postgres", durable=False)
        server.start()
        try:
            week = Week(server.create_database("week"), options.sources)
            days = [week.live(number) for number in range(1, options.days + 1)]
            week.come_to_rest()
            faults = week.faults(days)
        finally:
            server.stop()
    if options.plot:
        from bench.week.plot import plot  # noqa: PLC0415 - drawing needs a library that measuring does not

        plot(days, options.plot)
    for fault in faults:
        print(f"DOES NOT HOLD: {fault}")
    raise SystemExit(bool(faults))


class Week:
    """A lake in virtual time, from its first day on."""

    def __init__(self, url: str, sources: int) -> None:
        clock.install(url)
        migrate(url)
        self._lrdb = Lrdb(url)
        self._policy = CompactionPolicy()
        lake = Lake(
            settings=Settings(),
            limits=Limits(),
            policy=BoxPolicy(),
            lrdb=self._lrdb,
            bus=cast("Bus", None),
            stores=stores(),
            compaction=self._policy,
        )
        self._cost = Cost(self._policy)
        self._compaction = Compaction(lake, self._cost)
        self._ingest = Ingest(self._lrdb, BoxPolicy().age_seconds)
        self._ids = count(1)
        self._turn_to(BEGIN_MS)
        self._feeds: defaultdict[tuple[UUID, Signal], list[Feed]] = defaultdict(list)
        for number, source in enumerate(self._sources(sources)):
            for signal in Signal:
                feed = Feed(source, signal, 2 ** (number % SIZES), random.Random(f"{source.key} {signal}"))
                self._feeds[source.organization_id, signal].append(feed)
        self._step_ms = int(self._policy.gather_seconds * 1000)
        self._now_ms = BEGIN_MS
        print(
            f"{sources} sources of {len(Signal)} signals, a file every 10 s each, in boxes of "
            f"{BoxPolicy().age_seconds:g} s; {self._policy!r}\n\n"
            "| day | tick CPU ms | dispatcher | box | status | ingested | published | merges | rewritten |\n"
            "|---|---|---|---|---|---|---|---|---|"
        )

    def live(self, number: int) -> Day:
        """A day: what comes is ingested, compaction looks every few minutes."""
        took, before, written = Took(), self._compaction.merges, 0
        while self._now_ms < BEGIN_MS + number * DAY_MS:
            to_ms = self._now_ms + self._step_ms
            self._turn_to(to_ms)
            written += self._arrive(to_ms)
            self._now_ms = to_ms
            _add(took, self._compaction.look(to_ms))
            self._send_nothing()
            if to_ms // TENDED_MS > (to_ms - self._step_ms) // TENDED_MS:
                self._tend()
        day = Day(
            number=number,
            tick_ms=_median_ms(took.ticks),
            look_ms=_median_ms(took.looks),
            box_ms=_median_ms(took.boxes),
            status_ms=self._status_ms(),
            ingested=written,
            published=self._published(),
            merges=self._compaction.merges - before,
            rewritten=self._cost.amplification,
            allowed=self._cost.allowed,
        )
        print(
            f"| {day.number} | {day.tick_ms:.1f} | {day.look_ms:.1f} | {day.box_ms:.1f} | {day.status_ms:.0f} | "
            f"{day.ingested:,} | {day.published:,} | {day.merges:,} | {day.rewritten:.2f} (≤ {day.allowed:.2f}) |",
            flush=True,
        )
        return day

    def _arrive(self, to_ms: int) -> int:
        """Ingest what comes until then; the number of segments."""
        written = 0
        for (_, signal), feeds in self._feeds.items():
            arrivals = [(feed, feed.arrivals(self._now_ms, to_ms, self._ids)) for feed in feeds]
            published = self._ingest.publish(signal, arrivals)
            written += len(published)
            for one in published:
                self._cost.ingested(one.segment, to_ms)
        return written

    def come_to_rest(self) -> None:
        """Let time pass without a file until nothing is left to merge."""
        for _ in range(AFTERMATH_LOOKS):
            self._now_ms += self._step_ms
            self._turn_to(self._now_ms)
            self._compaction.look(self._now_ms)

    def faults(self, days: Sequence[Day]) -> list[str]:
        """What should hold now and does not, a sentence each."""
        found = [*self._cost.beyond(), *self._crowded_hours(), *self._unsettled(), *self._slower(days)]
        self._tend()
        with self._lrdb.snapshot() as conn:
            found += [f"{one.what}: {one.cases} cases, as {one.example}" for one in check.breaches(conn)]
        age = (self._now_ms - BEGIN_MS) / DAY_MS
        print(f"\nat rest, {age:.1f} days after the beginning: {self._published():,} segments are published")
        return found

    def _crowded_hours(self) -> list[str]:
        faults = []
        for signal, spec in SIGNALS.items():
            with self._lrdb.connection() as conn:
                rows = conn.execute(
                    f"""
                    SELECT organization_id, instance_num, dateint, lower(ts_range) / 3600000 %% 24, count(*)
                    FROM {spec.segment_table} WHERE published AND file_size < %s
                    GROUP BY 1, 2, 3, 4 HAVING count(*) > 2
                    """.encode(),
                    (FULL * self._policy.target_bytes,),
                ).fetchall()
            if rows:
                faults.append(f"{len(rows)} cold hours of {signal} have more than 2 small segments, as {rows[0]}")
        return faults

    def _unsettled(self) -> list[str]:
        with self._lrdb.connection() as conn:
            owed = [row for signal in Signal for row in debt.debt(conn, signal, self._policy, self._now_ms)]
        return [f"{row.source} {row.stage} has {row.hours} hours that are not settled" for row in owed]

    def _slower(self, days: Sequence[Day]) -> list[str]:
        if len(days) < 3:
            return []
        second, last = days[1], days[-1]
        pairs = {"ticks": (second.tick_ms, last.tick_ms), "looks": (second.look_ms, last.look_ms)}
        return [
            f"{what} took {later:.1f} ms on the last day, {earlier:.1f} ms on the second"
            for what, (earlier, later) in pairs.items()
            if later > FLAT * earlier
        ]

    def _sources(self, number: int) -> list[Source]:
        with self._lrdb.transaction() as conn:
            profiles.put_bucket(conn, BucketConfiguration("lake", "file", endpoint="/lake"))
            tenants = [profiles.add_organization(conn, f"tenant{each}") for each in range(ORGANIZATIONS)]
            return [
                profiles.register_source(
                    conn, tenants[each % ORGANIZATIONS].organization_id, f"collector{each}", "lake", limit=1000
                )
                for each in range(number)
            ]

    def _turn_to(self, epoch_ms: int) -> None:
        with self._lrdb.transaction() as conn:
            clock.turn_to(conn, epoch_ms)

    def _send_nothing(self) -> None:
        """Nobody listens here: what is to be told is forgotten."""
        with self._lrdb.transaction() as conn:
            conn.execute("DELETE FROM outbox")

    def _tend(self) -> None:
        """What autovacuum does in the time that did not pass."""
        with self._lrdb.connection() as conn:
            conn.execute("VACUUM (ANALYZE)")

    def _published(self) -> int:
        with self._lrdb.connection() as conn:
            counts = [
                conn.execute(f"SELECT count(*) FROM {spec.segment_table} WHERE published".encode()).fetchone()
                for spec in SIGNALS.values()
            ]
        return sum(row[0] for row in counts if row)

    def _status_ms(self) -> float:
        with self._lrdb.connection() as conn:
            cpu = Clock(backends(conn))
            began = cpu.seconds()
            for signal in Signal:
                debt.debt(conn, signal, self._policy, self._now_ms)
            return (cpu.seconds() - began) * 1000


def _add(took: Took, more: Took) -> None:
    took.ticks += more.ticks
    took.looks += more.looks
    took.boxes += more.boxes


def _median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000 if seconds else 0.0


if __name__ == "__main__":
    main()

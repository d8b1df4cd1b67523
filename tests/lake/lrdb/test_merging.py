"""The swap of compaction: whole or not at all, and never with a record more or less than its inputs had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.errors import ConservationBreach, LakeError, LeaseLost, SwapConflict
from lakerunner_dagster.lake.lrdb import boxes, lineage, outbox, unsettled
from lakerunner_dagster.lake.lrdb.connection import Lrdb
from lakerunner_dagster.lake.model import HOUR_MS, Contribution, InputKind, Message, Output, Segment, Source
from lakerunner_dagster.lake.signals import Signal
from lakerunner_dagster.lake.stages import compaction_stage
from tests.lake.lrdb.work import (
    DAY,
    NOON_MS,
    SETTINGS,
    add_source,
    do,
    ingest,
    ingested,
    merged,
    must_claim,
    no_breaches,
    one,
    open_box,
    output,
    publish_box,
    publish_merge,
    published,
    replace_hour,
)


def segments_of(lrdb: Lrdb, source: Source, count: int = 3, signal: Signal = Signal.LOGS) -> list[Segment]:
    """So many published segments of 30 records in an hour."""
    for _ in range(count):
        ingest(lrdb, source, signal)
    return published(lrdb, source, signal)


@pytest.mark.parametrize("signal", list(Signal))
def test_what_is_merged_takes_the_place_of_its_inputs(lrdb: Lrdb, edge: Source, signal: Signal) -> None:
    inputs = segments_of(lrdb, edge, 3, signal)
    out = merged(edge, inputs)
    replaced = publish_merge(lrdb, edge, inputs, [out], messages=[Message("topic", "key", {})])
    ids = {segment.segment_id for segment in inputs}
    assert (replaced.inserted, set(replaced.superseded)) == ((out.segment.segment_id,), ids)
    assert published(lrdb, edge, signal) == [out.segment]
    with lrdb.connection() as conn:
        raw = lineage.raw_inputs(conn, edge.organization_id, [out.segment.segment_id])[out.segment.segment_id]
        assert len(raw) == 9
        assert [item.message.topic for item in outbox.take(conn, 1000)].count("topic") == 1
    assert one(lrdb, "SELECT array_agg(DISTINCT replaced_by) FROM supersessions") == [[out.segment.segment_id]]
    assert one(lrdb, "SELECT records_written FROM ledger WHERE operation = 'compact'") == 90
    assert no_breaches(lrdb)


def short(out: Output, inputs: Sequence[Segment]) -> Output:
    """An output that lacks 1,000 rows of one input, and knows it."""
    first, *rest = out.inputs
    less = replace(out.segment, records=out.segment.records - 10, record_count=out.segment.record_count - 10)
    assert inputs
    return replace(out, segment=less, inputs=(Contribution(first.input_id, first.records - 10), *rest))


BROKEN: dict[str, Callable[[Output, Sequence[Segment]], Output]] = {
    "lacks records of an input": short,
    "lacks an input": lambda out, _: replace(out, inputs=out.inputs[1:]),
    "says that it has fewer records": lambda out, _: replace(out, segment=replace(out.segment, records=1)),
    "has fewer rows": lambda out, _: replace(out, segment=replace(out.segment, record_count=1)),
    "has records of another segment": lambda out, _: replace(
        out,
        segment=replace(out.segment, records=out.segment.records + 1, record_count=out.segment.record_count + 1),
        inputs=(*out.inputs, Contribution(7, 1)),
    ),
    "begins later": lambda out, _: replace(out, segment=replace(out.segment, start_ms=out.segment.start_ms + 1)),
    "ends later": lambda out, _: replace(out, segment=replace(out.segment, end_ms=out.segment.end_ms + 1)),
    "is of another hour": lambda out, _: replace(
        out, segment=replace(out.segment, start_ms=NOON_MS + HOUR_MS, end_ms=NOON_MS + HOUR_MS + 1)
    ),
    "is of another collector": lambda out, _: replace(out, segment=replace(out.segment, instance_num=2)),
    "is made of raw objects": lambda out, _: replace(out, input_kind=InputKind.RAW),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_output_is_refused_that(lrdb: Lrdb, edge: Source, how: str) -> None:
    inputs = segments_of(lrdb, edge)
    with pytest.raises((ConservationBreach, SwapConflict)):
        publish_merge(lrdb, edge, inputs, [BROKEN[how](merged(edge, inputs), inputs)])
    assert published(lrdb, edge) == inputs
    assert one(lrdb, "SELECT count(*) FROM ledger WHERE operation = 'compact'") == 0
    assert no_breaches(lrdb)


def test_an_output_that_lacks_a_thousand_rows_of_one_input_is_refused(lrdb: Lrdb, edge: Source) -> None:
    for _ in range(2):
        open_box(lrdb, edge, objects=1)
        box = must_claim(lrdb, edge)
        (member,) = box.members
        whole = [output(edge, {member.raw_object_id: 5000})]
        publish_box(lrdb, box, whole, [ingested(member.raw_object_id, 5000)])
    first, second = inputs = published(lrdb, edge)
    out = merged(edge, inputs, records=9000, record_count=9000)
    lacking = replace(out, inputs=(Contribution(first.segment_id, 4000), Contribution(second.segment_id, 5000)))
    with pytest.raises(ConservationBreach, match="10000 records were in 2 segments, 9000"):
        publish_merge(lrdb, edge, inputs, [lacking])
    assert published(lrdb, edge) == inputs


def test_a_count_that_was_not_there_is_refused(lrdb: Lrdb, edge: Source) -> None:
    inputs = segments_of(lrdb, edge, 2, Signal.METRICS)
    out = merged(edge, inputs)
    more = replace(out, segment=replace(out.segment, rollup_count=out.segment.rollup_count + 1))
    with pytest.raises(ConservationBreach, match="chq_rollup_count"):
        publish_merge(lrdb, edge, inputs, [more])


def test_segments_of_different_rollup_states_are_never_merged(lrdb: Lrdb, edge: Source) -> None:
    inputs = segments_of(lrdb, edge, 2, Signal.METRICS)
    do(lrdb, "UPDATE metric_seg SET rolledup = true WHERE segment_id = %s", inputs[0].segment_id)
    inputs = published(lrdb, edge, Signal.METRICS)
    with pytest.raises(SwapConflict):
        publish_merge(lrdb, edge, inputs, [merged(edge, inputs)])
    assert published(lrdb, edge, Signal.METRICS) == inputs


def test_inputs_that_another_has_replaced_or_changed_are_a_conflict(lrdb: Lrdb, edge: Source) -> None:
    inputs = segments_of(lrdb, edge)
    publish_merge(lrdb, edge, inputs[:2], [merged(edge, inputs[:2])])
    before = published(lrdb, edge)
    with pytest.raises(SwapConflict, match="not published any more"):
        publish_merge(lrdb, edge, inputs, [merged(edge, inputs)])
    stale = [replace(segment, file_size=1) for segment in before]
    with pytest.raises(SwapConflict, match="not published any more"):
        publish_merge(lrdb, edge, stale, [merged(edge, stale)])
    assert published(lrdb, edge) == before
    assert no_breaches(lrdb)


def test_the_same_merge_after_a_rebuild_publishes_the_same_segment_again(lrdb: Lrdb, edge: Source) -> None:
    boxes_, outs = zip(*(ingest(lrdb, edge) for _ in range(2)), strict=True)
    inputs = published(lrdb, edge)
    out = merged(edge, inputs)
    publish_merge(lrdb, edge, inputs, [out])
    records = {member.raw_object_id: 10 for box in boxes_ for member in box.members}
    replace_hour(lrdb, edge, outs, records)
    assert published(lrdb, edge) == inputs
    replaced = publish_merge(lrdb, edge, inputs, [out])
    assert replaced.republished == (out.segment.segment_id,)
    assert published(lrdb, edge) == [out.segment]
    assert no_breaches(lrdb)


def test_another_tenants_segment_cannot_be_merged_away(lrdb: Lrdb, edge: Source) -> None:
    globex = add_source(lrdb, "globex", "edge")
    mine, theirs = segments_of(lrdb, edge, 2), segments_of(lrdb, globex, 1)
    with pytest.raises(LakeError):
        publish_merge(lrdb, edge, [*mine, *theirs], [merged(edge, [*mine, *theirs])])
    assert published(lrdb, globex) == theirs
    assert published(lrdb, edge) == mine


def test_a_box_whose_lease_is_lost_publishes_nothing(lrdb: Lrdb, edge: Source) -> None:
    inputs = segments_of(lrdb, edge)
    with lrdb.transaction() as conn:
        (group,) = unsettled.due(conn, Signal.LOGS, 10)
        unsettled.open_box(conn, group, members=3, size=1, reason="cold")
    with lrdb.transaction() as conn:
        stage = compaction_stage(Signal.LOGS).name
        box = boxes.claim(conn, stage, edge, DAY, run_id="run", settings=SETTINGS)
        assert box is not None
    assert unsettled.group_of_box(box) == group
    do(lrdb, "UPDATE boxes SET lease_token = gen_random_uuid() WHERE box_id = %s", box.lease.box_id)
    with pytest.raises(LeaseLost):
        publish_merge(lrdb, edge, inputs, [merged(edge, inputs)], lease=box.lease)
    assert published(lrdb, edge) == inputs


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 29), max_size=3, unique=True), backwards=st.booleans())
def test_however_the_outputs_are_cut_every_record_is_seen_once(
    lrdb: Lrdb,
    edge: Source,
    cuts: list[int],
    backwards: bool,  # noqa: FBT001
) -> None:
    before = published(lrdb, edge)
    segments_of(lrdb, edge, 2)
    inputs = sorted(published(lrdb, edge), key=lambda segment: segment.segment_id, reverse=backwards)
    total = sum(segment.records for segment in inputs)
    outputs = []
    for low, high in pairwise([0, *sorted(cuts), 30]):
        shares = {segment.segment_id: segment.records * high // 30 - segment.records * low // 30 for segment in inputs}
        count = sum(shares.values())
        part = merged(edge, inputs, records=count, record_count=count)
        outputs.append(replace(part, inputs=tuple(Contribution(id_, share) for id_, share in shares.items() if share)))
    publish_merge(lrdb, edge, inputs, outputs)
    assert sum(segment.records for segment in published(lrdb, edge)) == total
    assert total == sum(segment.records for segment in before) + 60
    assert no_breaches(lrdb)

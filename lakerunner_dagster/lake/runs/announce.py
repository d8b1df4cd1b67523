"""What is told of segments: to the next stages when they are published, and in boxes (spec/messages.md, Bodies).

What belongs here: topic, key and body of ``boxer.*`` messages and of boxes of segments. What does not: sending them
(``ticks.outbox``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lakerunner_dagster.lake.lrdb.unsettled import PublishedSegment
from lakerunner_dagster.lake.model import Message, Segment, rfc3339
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.signals import ROLLUP_TOPIC, SIGNALS
from lakerunner_dagster.lake.stages import Stage, compaction_stage, rollup_stage
from lakerunner_dagster.lake.tiers import Tier, tier_above

BOX_MEMBERS = 3000
"""Most segments that a box's message names, so that it stays under 900 kB; lrdb knows all of them."""


def announcements(segments: Iterable[Segment], queued_ms: int) -> list[Message]:
    """The messages that make each new segment known to compaction and, where there is a next tier, to rollup."""
    return [message for segment in segments for message in _of(segment, queued_ms)]


def _of(segment: Segment, queued_ms: int) -> Iterator[Message]:
    facts: dict[str, Any] = {
        "v": 1,
        "o": str(segment.organization_id),
        "d": segment.dateint,
        "s": segment.segment_id,
        "i": segment.instance_num,
        "rc": segment.record_count,
        "fs": segment.file_size,
        "t": rfc3339(queued_ms),
    }
    group = f"{segment.organization_id}/{segment.dateint}/{segment.instance_num}"
    topic = SIGNALS[segment.signal].compaction_topic
    if not segment.frequency_ms:
        yield Message(topic, group, facts | {"st": segment.start_ms, "et": segment.end_ms})
        return
    yield Message(topic, f"{group}/{segment.frequency_ms}", facts | {"f": segment.frequency_ms})
    tier = tier_above(segment.frequency_ms)
    if tier is not None:
        tiers = {"sf": segment.frequency_ms, "tf": tier.frequency_ms, "st": rfc3339(segment.start_ms)}
        yield Message(ROLLUP_TOPIC, f"{group}/{tier.frequency_ms}", facts | tiers)


def compaction_box(group: SegmentGroup, members: Sequence[PublishedSegment], box_id: int, queued_ms: int) -> Message:
    """The message of a box of compaction: the segments of one hour that are to be merged."""
    tier = {"f": group.frequency_ms} if group.frequency_ms else {}
    elements = [str(group.organization_id), group.dateint, group.instance_num, *tier.values()]
    bodies = [
        _member(group, member, queued_ms) | (tier or {"st": member.start_ms, "et": member.end_ms}) for member in members
    ]
    return _box(compaction_stage(group.signal), elements, bodies, box_id, queued_ms)


def rollup_box(
    group: SegmentGroup, tier: Tier, members: Sequence[PublishedSegment], box_id: int, queued_ms: int
) -> Message:
    """The message of a box of rollup: the segments of the finer tier from which slots of an hour are to be computed."""
    elements = [str(group.organization_id), group.dateint, group.instance_num, tier.frequency_ms]
    bodies = [
        _member(group, member, queued_ms)
        | {"sf": tier.finer_ms, "tf": tier.frequency_ms, "st": rfc3339(member.start_ms)}
        for member in members
    ]
    return _box(rollup_stage(), elements, bodies, box_id, queued_ms)


def _member(group: SegmentGroup, member: PublishedSegment, queued_ms: int) -> dict[str, Any]:
    return {
        "v": 1,
        "o": str(group.organization_id),
        "d": group.dateint,
        "s": member.candidate.segment_id,
        "i": group.instance_num,
        "rc": member.record_count,
        "fs": member.candidate.bytes,
        "t": rfc3339(queued_ms),
    }


def _box(stage: Stage, key: Iterable[object], bodies: Sequence[object], box_id: int, queued_ms: int) -> Message:
    body = {"v": 1, "m": list(bodies[:BOX_MEMBERS]), "q": rfc3339(queued_ms), "box": box_id}
    return Message(stage.box_topic, "/".join(map(str, key)), body)

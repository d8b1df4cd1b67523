"""What is told of segments: to the next stages when they are published, and in boxes (spec/messages.md, Bodies).

What belongs here: topic, key and body of ``boxer.*`` messages and of a compaction box. What does not: sending them
(``ticks.outbox``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lakerunner_dagster.lake.lrdb.unsettled import PublishedSegment
from lakerunner_dagster.lake.model import Message, Segment, rfc3339
from lakerunner_dagster.lake.planning.compaction import SegmentGroup
from lakerunner_dagster.lake.signals import INGEST_FREQUENCY_MS, ROLLUP_TOPIC, SIGNALS
from lakerunner_dagster.lake.stages import compaction_stage

NEXT_TIER_MS = {INGEST_FREQUENCY_MS: 60_000}
"""By the frequency (ms) of a tier, that of the tier computed from it."""

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
    target = NEXT_TIER_MS.get(segment.frequency_ms)
    if target is not None:
        tiers = {"sf": segment.frequency_ms, "tf": target, "st": rfc3339(segment.start_ms)}
        yield Message(ROLLUP_TOPIC, f"{group}/{target}", facts | tiers)


def compaction_box(group: SegmentGroup, members: Sequence[PublishedSegment], box_id: int, queued_ms: int) -> Message:
    """The message of a box of compaction: the segments of one hour that are to be merged."""
    queued = rfc3339(queued_ms)
    tier = {"f": group.frequency_ms} if group.frequency_ms else {}
    bodies = [
        {
            "v": 1,
            "o": str(group.organization_id),
            "d": group.dateint,
            "s": member.candidate.segment_id,
            "i": group.instance_num,
            "rc": member.record_count,
            "fs": member.candidate.bytes,
            "t": queued,
            **(tier or {"st": member.start_ms, "et": member.end_ms}),
        }
        for member in members[:BOX_MEMBERS]
    ]
    elements = [str(group.organization_id), group.dateint, group.instance_num, *tier.values()]
    return Message(
        compaction_stage(group.signal).box_topic,
        "/".join(map(str, elements)),
        {"v": 1, "m": bodies, "q": queued, "box": box_id},
    )

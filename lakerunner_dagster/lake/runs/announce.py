"""What a run tells the next stages about the segments that it has published (spec/messages.md, Bodies).

What belongs here: topic, key and body of ``boxer.*`` messages. What does not: sending them (``ticks.outbox``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lakerunner_dagster.lake.model import Message, Segment, rfc3339
from lakerunner_dagster.lake.signals import INGEST_FREQUENCY_MS, ROLLUP_TOPIC, SIGNALS

NEXT_TIER_MS = {INGEST_FREQUENCY_MS: 60_000}
"""By the frequency (ms) of a tier, that of the tier computed from it."""


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

"""What a person sees of a materialisation: a run's steps as Dagster metadata.

What belongs here: summing up steps and choosing how they are shown. What does not: the steps themselves
(``lake.runs.report``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import dagster as dg

from lakerunner_dagster.lake.model import Segment
from lakerunner_dagster.lake.runs.report import SetAside, Step
from lakerunner_dagster.tables import table

MS_PER_SECOND = 1000

ORIGINS = 1000
"""Most rows of the table of what rollups were computed from."""

Metadata = dict[str, dg.MetadataValue]


def work_metadata(steps: Sequence[Step]) -> Metadata:
    """What these steps of one partition have done, all days that they touched included."""
    rejected: Counter[str] = Counter()
    for step in steps:
        rejected.update(step.rejected)
    segments = [segment for step in steps for segment in step.segments]
    set_aside = [aside for step in steps for aside in step.set_aside]
    days = sorted({day for step in steps for day in step.days})
    return {
        "records read": dg.MetadataValue.int(sum(step.records_read for step in steps)),
        "records written": dg.MetadataValue.int(sum(step.records_written for step in steps)),
        "records rejected": dg.MetadataValue.int(rejected.total()),
        "rejected by reason": dg.MetadataValue.json(dict(rejected.most_common())),
        "records of other hours": dg.MetadataValue.int(sum(step.elsewhere for step in steps)),
        **segments_metadata(segments),
        **_origins([origin for step in steps for origin in step.origins]),
        "segments superseded": dg.MetadataValue.int(sum(step.superseded for step in steps)),
        "raw objects": dg.MetadataValue.int(sum(step.objects for step in steps)),
        "raw objects set aside": dg.MetadataValue.int(len(set_aside)),
        **({"set aside": _set_aside_table(set_aside)} if set_aside else {}),
        "bytes in": dg.MetadataValue.int(sum(step.bytes_in for step in steps)),
        "bytes in, decompressed": dg.MetadataValue.int(sum(step.raw_bytes for step in steps)),
        "bytes out": dg.MetadataValue.int(sum(step.bytes_out for step in steps)),
        "days touched": dg.MetadataValue.text(", ".join(map(str, days))),
        "transactions": dg.MetadataValue.int(len(steps)),
        "seconds": dg.MetadataValue.float(round(math.fsum(step.seconds for step in steps), 3)),
        "peak memory, bytes": dg.MetadataValue.int(max((step.peak_memory_bytes for step in steps), default=0)),
    }


def segments_metadata(segments: Sequence[Segment]) -> Metadata:
    """Which segments, how large, and from when to when."""
    counts: Metadata = {
        "segments": dg.MetadataValue.int(len(segments)),
        "dagster/row_count": dg.MetadataValue.int(sum(segment.record_count for segment in segments)),
    }
    if not segments:
        return counts
    ordered = sorted(segments, key=lambda segment: segment.key)
    return counts | {
        "segment keys": table(
            {"key": "string", "rows": "int", "records": "int", "bytes": "int"},
            ((segment.key, segment.record_count, segment.records, segment.file_size) for segment in ordered),
        ),
        "lineage": dg.MetadataValue.md(f"`lakerunner lineage {ordered[0].key}`"),
        "event time from": dg.MetadataValue.timestamp(min(segment.start_ms for segment in segments) / MS_PER_SECOND),
        "event time to": dg.MetadataValue.timestamp(max(segment.end_ms for segment in segments) / MS_PER_SECOND),
    }


def _origins(origins: Sequence[tuple[str, str]]) -> Metadata:
    """Of rollups: the segments of the ingest tier behind each segment; those that are too many are told by lineage."""
    if not origins:
        return {}
    shown = table({"segment": "string", "computed from": "string"}, sorted(set(origins))[:ORIGINS])
    return {"ingested segments behind them": dg.MetadataValue.int(len(set(origins))), "computed from": shown}


def _set_aside_table(set_aside: Sequence[SetAside]) -> dg.TableMetadataValue:
    return table(
        {"key": "string", "state": "string", "why": "string"},
        ((aside.raw.key, str(aside.state), aside.error_class) for aside in set_aside),
    )

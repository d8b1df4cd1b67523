"""What makes a segment what it is besides its rows: whose it is, of which hour, and which work made it of what.

What belongs here: that a segment's id, its footer and its index row say the same of it. What does not: what its rows
say (``index``), how an id is computed (``ids``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.model import HOUR_MS, CreatedBy, Segment, Source, dateint_of, hour_of
from lakerunner_dagster.lake.segments.ids import inputs_digest, segment_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lakerunner_dagster.lake.segments.index import Contents
    from lakerunner_dagster.lake.signals import Signal


@dataclass(frozen=True, slots=True)
class Work:
    """One output of one piece of work on an hour: done twice, it is the same segment.

    ``hour_ms``: where in the UTC hour the rows lie does not matter. ``inputs``: identities of everything that was read,
    in whatever order. ``ordinal`` numbers the outputs of one hour.
    """

    source: Source
    signal: Signal
    frequency_ms: int
    hour_ms: int
    inputs: Sequence[str]
    operation: str
    code_version: str
    ordinal: int = 0

    @property
    def segment_id(self) -> int:
        """The id of the output (``ids.segment_id``)."""
        return segment_id(
            organization_id=self.source.organization_id,
            instance_num=self.source.instance_num,
            signal=self.signal,
            frequency_ms=self.frequency_ms,
            dateint=dateint_of(self.hour_ms),
            hour=hour_of(self.hour_ms),
            inputs=self.inputs,
            operation=self.operation,
            code_version=self.code_version,
            ordinal=self.ordinal,
        )

    def footer(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Key-value metadata of the file; ``labels``: attribute column to original key."""
        return {
            "lakerunner.organization": str(self.source.organization_id),
            "lakerunner.signal": str(self.signal),
            "lakerunner.frequency_ms": str(self.frequency_ms),
            "lakerunner.inputs": inputs_digest(self.inputs),
            "lakerunner.code_version": self.code_version,
            "lakerunner.columns": json.dumps(labels, ensure_ascii=False),
        }

    def segment(
        self,
        contents: Contents,
        labels: Mapping[str, str],
        *,
        file_size: int,
        ingest_dateint: int,
        created_by: CreatedBy,
        compacted: bool = False,
        rolledup: bool = False,
        reach_ms: int | None = None,
    ) -> Segment:
        """The index row. ``file_size``: bytes of the file that has the rows of ``contents``.

        :raises ContractBreach: the rows span two hours.
        """
        hours = {ms // HOUR_MS for ms in (self.hour_ms, contents.start_ms, contents.end_ms - 1)}
        if len(hours) > 1:
            raise ContractBreach(
                f"Rows of {self.source.key} span [{contents.start_ms}, {contents.end_ms}) ms: a segment holds one UTC "
                "hour alone."
            )
        return Segment(
            organization_id=self.source.organization_id,
            instance_num=self.source.instance_num,
            collector=self.source.collector,
            signal=self.signal,
            dateint=dateint_of(contents.start_ms),
            frequency_ms=self.frequency_ms,
            segment_id=self.segment_id,
            start_ms=contents.start_ms,
            end_ms=contents.end_ms,
            record_count=contents.record_count,
            file_size=file_size,
            ingest_dateint=ingest_dateint,
            created_by=created_by,
            records=contents.records,
            compacted=compacted,
            rolledup=rolledup,
            fingerprints=contents.fingerprints(),
            label_name_map=labels,
            reach_ms=reach_ms,
            **contents.own_fields(),
        )

"""Deterministic identities: the same work done twice gets the same names.

What belongs here: ids that are a function of what they stand for. What does not: object keys (``model.Segment.key``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xxhash

from lakerunner_dagster.lake.telemetry.raw import IDENTITY_DIGITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from lakerunner_dagster.lake.signals import Signal

_POSITIVE_INT64 = (1 << 63) - 1


def raw_identity(bucket: str, key: str, etag: str) -> str:
    """Hex digits that stand for one version of a raw object; every chq_id of its records begins with them."""
    return xxhash.xxh3_128_hexdigest(f"{bucket}\0{key}\0{etag}".encode())[:IDENTITY_DIGITS]


def inputs_digest(inputs: Iterable[str]) -> str:
    """32 hex digits that stand for a set of inputs, in whatever order and however often they are named."""
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(set(inputs))).encode())


def segment_id(
    *,
    organization_id: UUID,
    instance_num: int,
    signal: Signal,
    frequency_ms: int,
    dateint: int,
    hour: int,
    inputs: Sequence[str],
    operation: str,
    code_version: str,
    ordinal: int,
) -> int:
    """Positive int64 of one output of one piece of work: a crashed retry overwrites its own object.

    ``inputs`` are the identities of everything that was read, ``ordinal`` numbers the outputs of one hour.
    """
    work = (
        str(organization_id),
        instance_num,
        str(signal),
        frequency_ms,
        dateint,
        hour,
        inputs_digest(inputs),
        operation,
        code_version,
        ordinal,
    )
    return xxhash.xxh3_64_intdigest(json.dumps(work).encode()) & _POSITIVE_INT64 or 1

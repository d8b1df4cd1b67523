"""Fields of the JSON bodies of messages, checked: what comes from Kafka may be anything.

What belongs here: reading one field; InputError ``bad_notification`` says what is wrong with it. What does not: which
fields a message has (``lrdb.intake``, ``notifications.announcements``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.connection import storable


def text_field(body: Mapping[Any, Any], name: str, longest: int = 1024, default: str | None = None) -> str:
    """Text of at most ``longest`` UTF-8 bytes that PostgreSQL can hold; ``default`` where there is none."""
    value = body.get(name, default)
    if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > longest or storable(value) != value:
        raise InputError(
            "bad_notification", f"{name!r} must be text of at most {longest} bytes, not {ascii(value)[:200]}"
        )
    return value


def number_field(body: Mapping[Any, Any], name: str, largest: int) -> int:
    """An integer of 0 to ``largest``."""
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise InputError("bad_notification", f"{name!r} must be an integer of 0 to {largest}, not {ascii(value)[:200]}")
    return value


def uuid_field(body: Mapping[Any, Any], name: str) -> UUID:
    """A UUID in its usual form."""
    try:
        return UUID(text_field(body, name))
    except ValueError as error:
        raise InputError("bad_notification", f"{name!r} must be a UUID, not {ascii(body.get(name))[:200]}") from error

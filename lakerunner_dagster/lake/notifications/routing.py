"""From an object key to the organization, collector and signal that it belongs to (spec/messages.md).

What belongs here: what can be told from the key and a bucket's prefix mappings, as pure functions. What does not:
whether such an organization exists (``intake``), what an event looks like (``events``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.model import check_collector
from lakerunner_dagster.lake.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lakerunner_dagster.lake.lrdb.profiles import PrefixMapping

SEGMENT_PREFIX = "db/"
"""Where segments stand: what is created there is our own work, not input."""

ORGANIZATION = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

SIGNAL_WORDS = {signal.value: signal for signal in Signal}


@dataclass(frozen=True, slots=True)
class Route:
    """Whose object it is, and of which signal."""

    organization_id: UUID
    collector: str
    signal: Signal


def uninteresting(key: str) -> str | None:
    """Why an object of this key is none of ours to ingest, in one word; None when it is."""
    if key.endswith("/"):
        return "directory"
    if key.startswith(SEGMENT_PREFIX):
        return "segment"
    return None


def route(key: str, mappings: Iterable[PrefixMapping]) -> Route:
    """The route of an object key, with the prefix mappings of its bucket.

    InputError: ``bad_collector_name``, ``no_signal`` or ``no_route``.
    """
    match key.split("/"):
        case ["otel-raw", organization, collector, *rest] if ORGANIZATION.fullmatch(organization):
            found = Route(UUID(organization), collector, _signal_in_key(rest))
        case _:
            found = _mapped_route(key, mappings)
    check_collector(found.collector)
    return found


def _signal_in_key(rest: Sequence[str]) -> Signal:
    signal = _signal(rest)
    if signal is None:
        raise InputError(
            "no_signal",
            "the key does not tell a signal: put logs/, metrics/ or traces/ after the collector, "
            "or begin the file's name with logs_, metrics_ or traces_",
        )
    return signal


def _signal(elements: Sequence[str]) -> Signal | None:
    """The first element that is a signal's name, else what the last one begins with, up to its first ``_``."""
    named = next((SIGNAL_WORDS[element] for element in elements if element in SIGNAL_WORDS), None)
    return named or SIGNAL_WORDS.get(elements[-1].split("_", 1)[0] if elements else "")


def _mapped_route(key: str, mappings: Iterable[PrefixMapping]) -> Route:
    """The longest matching prefix decides; where it is mapped for several signals, the key's own signal among them."""
    matching = [mapping for mapping in mappings if key.startswith(mapping.path_prefix)]
    longest = max((len(mapping.path_prefix) for mapping in matching), default=0)
    routes = [
        Route(mapping.organization_id, mapping.collector, mapping.signal)
        for mapping in matching
        if len(mapping.path_prefix) == longest
    ]
    if len(routes) > 1:
        signal = _signal([element.removesuffix("-raw") for element in key.split("/")])
        routes = [candidate for candidate in routes if candidate.signal == signal]
    if len(routes) != 1:
        raise InputError(
            "no_route",
            "the key is neither below otel-raw/{organization id}/{collector}/ nor below a mapped prefix of its bucket "
            "(one for its signal, where several have the prefix): add a prefix mapping to the storage profile",
        )
    return routes[0]

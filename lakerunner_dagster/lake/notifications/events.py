"""One parser for the object-created events of every object store, told apart by their shape (spec/messages.md).

What belongs here: the formats, as pure functions from bytes to object events. What does not: whose objects these are
(``routing``), and how the bytes came (the adapters).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote_plus

from lakerunner_dagster.lake.errors import InputError
from lakerunner_dagster.lake.lrdb.intake import LATEST_MS
from lakerunner_dagster.lake.notifications.routing import uninteresting
from lakerunner_dagster.lake.store import normalize_etag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Json = dict[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

BIGGEST_SIZE = 2**62
"""What a notification may carry (``lrdb.intake``)."""

ETAG_BYTES = 256
TIME_CHARACTERS = 64
"""Longer texts are no times: not worth a parser's while."""

SHOWN_EVENTS, SHOWN_CHARACTERS = 16, 16_384
"""How much is kept of events that cannot be read."""

CREATED = re.compile(r"(s3:)?ObjectCreated:")
"""MinIO writes the names of S3 events with their scheme."""

BRIDGE_CREATED = "Object Created"

AZURE_SUBJECT = re.compile(r"/blobServices/[^/]+/containers/([^/]+)/blobs/(.+)", re.DOTALL)
AZURE_VALIDATION = "Microsoft.EventGrid.SubscriptionValidationEvent"
AZURE_CREATED = "Microsoft.Storage.BlobCreated"
AZURE_BEGUN = ("CreateFile", "SftpCreate")
"""Calls that leave an empty blob, of which BlobCreated is told all the same: FlushWithClose or SftpCommit ends it."""


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """An object was created. ``size`` in stored bytes, 0 when unknown; ``etag`` without quotes, empty when unknown.

    ``event_time_ms`` is what the event says, in epoch ms; 0 where it says nothing that a notification may carry.
    """

    bucket: str
    key: str
    size: int
    etag: str
    event_time_ms: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Events of a body that cannot be read though others can: their JSON, cut, and what is wrong with the first."""

    text: str
    error: InputError


Entry = ObjectEvent | Unreadable


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a body said: objects created, events passed over (counted by reason), and a code to answer with, if any."""

    objects: tuple[ObjectEvent, ...]
    ignored: Counter[str]
    handshake: str | None
    unreadable: Unreadable | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is to be passed on or kept: however many events of a body cannot be read, they are one entry."""
        return self.objects if self.unreadable is None else (*self.objects, self.unreadable)


@dataclass(frozen=True, slots=True)
class _Ignored:
    reason: str


@dataclass(frozen=True, slots=True)
class _Handshake:
    code: str


@dataclass(frozen=True, slots=True)
class _Broken:
    event: object
    error: InputError


_Finding = ObjectEvent | _Ignored | _Handshake | _Broken


def parse(body: bytes, attributes: Mapping[str, str] | None = None) -> Parsed:
    """What a notification says. ``attributes`` are the transport's (Pub/Sub's ``eventType``).

    InputError ``not_json``, ``too_deep``, ``unknown_format``, or ``incomplete_event`` for a known format that lacks
    what it must have: when nothing in the body can be read. Where something can, the rest is told as unreadable.
    """
    document = _loaded(body)
    if isinstance(document, list) and document:
        findings = [found for event in document for found in _each(event, partial(_findings, formats=ARRAY_FORMATS))]
    else:
        findings = list(_findings(document, attributes or {}, FORMATS))
    broken = [finding for finding in findings if isinstance(finding, _Broken)]
    if broken and len(broken) == len(findings):
        raise broken[0].error
    return Parsed(
        objects=tuple(finding for finding in findings if isinstance(finding, ObjectEvent)),
        ignored=Counter(finding.reason for finding in findings if isinstance(finding, _Ignored)),
        handshake=next((finding.code for finding in findings if isinstance(finding, _Handshake)), None),
        unreadable=_unreadable(broken) if broken else None,
    )


def _each(event: object, read: Callable[[object, Mapping[str, str]], Iterator[_Finding]]) -> list[_Finding]:
    """What one of several events says, or that it cannot be read: the others can."""
    try:
        return list(read(event, {}))
    except InputError as error:
        return [_Broken(event, error)]


def _unreadable(broken: Sequence[_Broken]) -> Unreadable:
    try:
        text = json.dumps([each.event for each in broken[:SHOWN_EVENTS]])[:SHOWN_CHARACTERS]
    except RecursionError:
        text = "nested too deeply to be shown"
    first = broken[0].error
    return Unreadable(text, InputError(first.reason, f"{len(broken)} of the events in a body cannot be read: {first}"))


def _loaded(body: bytes) -> object:
    try:
        return _JSON.decode(body.decode())
    except RecursionError as error:
        raise InputError("too_deep", "notification is nested too deeply to be an event") from error
    except ValueError as error:
        raise InputError("not_json", f"notification is not JSON in UTF-8: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
"""Kept, for ``json.loads`` makes one anew for each body."""


def _findings(event: object, attributes: Mapping[str, str], formats: _Formats) -> Iterator[_Finding]:
    if isinstance(event, dict):
        for fits, read in formats:
            if fits(event):
                return read(event, attributes)
    raise InputError(
        "unknown_format",
        "notification has the shape of no known event: send S3, SNS, EventBridge, GCS, Event Grid or CloudEvents as is",
    )


def _s3(event: Json, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    if not event["Records"]:
        yield _Ignored("empty")
    for record in event["Records"]:
        yield from _each(record, _s3_record)


def _s3_record(record: object, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    name = _text(record, "eventName", default="ObjectCreated:")
    if not CREATED.match(name):
        yield _Ignored("not_created")
        return
    stored = _inner(record, "s3", "object")
    yield _found(
        bucket=_text(_inner(record, "s3", "bucket"), "name"),
        # Undecodable bytes stay in the key as surrogates: it is refused by its name, not dropped.
        key=unquote_plus(_text(stored, "key"), errors="surrogateescape"),
        size=stored.get("size"),
        etag=stored.get("eTag"),
        time=_inner(record).get("eventTime"),
    )


def _s3_test(_event: Json, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    yield _Ignored("test_event")


def _sns(event: Json, attributes: Mapping[str, str]) -> Iterator[_Finding]:
    # Bare formats only: an envelope in an envelope is nobody's format, and need not be followed down.
    return _findings(_loaded(event["Message"].encode(errors="surrogatepass")), attributes, BARE_FORMATS)


def _sns_subscription(_event: Json, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    # Confirming means fetching a URL that the sender chose: a person does that, in the console.
    yield _Ignored("subscription")


def _event_bridge(event: Json, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    if event["detail-type"] != BRIDGE_CREATED:
        yield _Ignored("not_created")
        return
    stored = _inner(event, "detail", "object")
    yield _found(
        bucket=_text(_inner(event, "detail", "bucket"), "name"),
        key=_text(stored, "key"),
        size=stored.get("size"),
        etag=stored.get("etag"),
        time=event.get("time"),
    )


def _gcs(event: Json, attributes: Mapping[str, str]) -> Iterator[_Finding]:
    # Without Pub/Sub's attributes a deletion differs from a creation by its time of deletion alone.
    if attributes.get("eventType", "OBJECT_FINALIZE") != "OBJECT_FINALIZE" or "timeDeleted" in event:
        yield _Ignored("not_created")
        return
    yield _found(
        bucket=_text(event, "bucket"),
        key=_text(event, "name"),
        size=event.get("size"),
        etag=_gcs_etag(event.get("md5Hash")),
        time=event.get("timeCreated"),
    )


def _gcs_etag(md5_hash: object) -> str:
    """The etag that reading the object will give: its MD5 in hex. A JSON notification's own etag is another one."""
    try:
        return base64.b64decode(md5_hash, validate=True).hex() if isinstance(md5_hash, str) else ""
    except (binascii.Error, ValueError):
        return ""


def _azure(event: Json, _attributes: Mapping[str, str]) -> Iterator[_Finding]:
    kind = _azure_type(event)
    if kind == AZURE_VALIDATION:
        yield _handshake(_text(_inner(event, "data"), "validationCode"))
        return
    if kind != AZURE_CREATED:
        yield _Ignored("not_created")
        return
    place = AZURE_SUBJECT.fullmatch(_text(event, "subject"))
    if place is None:
        raise InputError("incomplete_event", "the event's subject names no container and blob")
    data = _inner(event, "data")
    if data.get("api") in AZURE_BEGUN:
        yield _Ignored("not_finished")
        return
    yield _found(
        bucket=place[1],
        key=place[2],
        size=data.get("contentLength"),
        etag=data.get("eTag"),
        time=event.get("eventTime") or event.get("time"),
    )


def _handshake(code: str) -> _Handshake:
    """The code to answer with; one that holds half a character could not even be sent back."""
    if not code.isprintable():
        raise InputError("incomplete_event", "the event's validationCode is no printable text")
    return _Handshake(code)


def _azure_type(event: Json) -> str:
    kind = event.get("eventType") or event.get("type")
    return kind if isinstance(kind, str) else ""


def _found(*, bucket: str, key: str, size: object, etag: object, time: object) -> _Finding:
    reason = uninteresting(key)
    if reason is not None:
        return _Ignored(reason)
    return ObjectEvent(bucket=bucket, key=key, size=_size(size), etag=_etag(etag), event_time_ms=_epoch_ms(time))


def _inner(event: object, *path: str) -> Json:
    inner = event
    for name in path:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise InputError("incomplete_event", f"the event has no object {'.'.join(path)}")
    return inner


def _text(event: object, name: str, default: str | None = None) -> str:
    value = event.get(name, default) if isinstance(event, dict) else None
    if not isinstance(value, str) or not value:
        raise InputError("incomplete_event", f"the event has no text {name!r}")
    return value


def _size(value: object) -> int:
    """Bytes, from a number or its digits; 0 (unknown) for anything else: the store knows better."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(BIGGEST_SIZE)):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= BIGGEST_SIZE:
        return value
    return 0


def _etag(value: object) -> str:
    """The etag, empty (unknown) for anything that is none: the store knows better."""
    etag = normalize_etag(value) if isinstance(value, str) else ""
    return etag if etag.isascii() and etag.isprintable() and len(etag) <= ETAG_BYTES else ""


def _epoch_ms(value: object) -> int:
    """Epoch ms of an RFC 3339 time, 0 (unknown) for anything else."""
    if not isinstance(value, str) or len(value) > TIME_CHARACTERS:
        return 0
    try:
        moment = datetime.fromisoformat(value)
        zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        milliseconds = (zoned - EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return 0
    return milliseconds if 0 <= milliseconds <= LATEST_MS else 0


if TYPE_CHECKING:
    _Formats = tuple[
        tuple[Callable[[Json], bool], Callable[[Json, Mapping[str, str]], Iterator[_Finding]]],
        ...,
    ]

ARRAY_FORMATS: _Formats = ((lambda event: _azure_type(event).startswith("Microsoft."), _azure),)
"""What may come several in an array."""

BARE_FORMATS: _Formats = (
    (lambda event: isinstance(event.get("Records"), list), _s3),
    (lambda event: event.get("Event") == "s3:TestEvent", _s3_test),
    (lambda event: event.get("detail-type") == BRIDGE_CREATED, _event_bridge),
    (lambda event: event.get("source") == "aws.s3" and isinstance(event.get("detail-type"), str), _event_bridge),
    (lambda event: event.get("kind") == "storage#object", _gcs),
    *ARRAY_FORMATS,
)
"""Each format: how to know it, and how to read it."""

FORMATS: _Formats = (
    *BARE_FORMATS,
    (lambda event: event.get("Type") == "Notification" and isinstance(event.get("Message"), str), _sns),
    (lambda event: event.get("Type") in ("SubscriptionConfirmation", "UnsubscribeConfirmation"), _sns_subscription),
)

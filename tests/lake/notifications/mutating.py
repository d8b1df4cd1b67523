"""Bodies that are nearly right: a sample's, changed in a place or two, the same for a seed each time.

What belongs here: changing documents and bytes. What does not: what a parser makes of them (the tests).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

Place = tuple[str | int, ...]

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**62, 2**63, 10**400, "", " ", "0", "-1", "\x00", "\ud800", "\udcff"),
    *("..", "a/../b", "%00", "%", "%zz", "+", "\u202e", "\ufeff", "ü" * 1024, "x" * 2048, "9" * 5000, "/" * 300),
    *("9999-12-31T23:59:59.999-23:59", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "2026-W01-1", "20260101"),
    *("ObjectCreated:", "s3:ObjectCreated:Put", "ObjectRemoved:Delete", "Object Created", "storage#object"),
    *("Microsoft.Storage.BlobCreated", "Microsoft.", "/blobServices/default/containers/a/blobs/", "s3:TestEvent"),
    *([], {}, [[]], [{}], {"": {}}, [None], {"Records": [{}]}, "{}", "[]", '{"Records": []}', "null"),
)

ODD_NAMES = ("", "Records", "s3", "object", "key", "eventType", "type", "kind", "Type", "Message", "data", "\x00", "ü")

ODD_BYTES: tuple[bytes, ...] = (
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":"),
    *(b"NaN", b"-Infinity", b"1e999", b"0" * 400, b"9" * 5000, b"null", b"\xef\xbb\xbf", b"\n"),
    *(b"[" * 3000, b'{"a":' * 3000),
)


def mutated(text: str, seed: str) -> bytes:
    """A body made from a JSON text by one to three changes to its structure, its bytes, or both."""
    rng = Random(seed)
    structural, bytewise = rng.choice(((1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (1, 1)))
    body = (_restructured(text, rng, structural) if structural else text).encode(errors="surrogatepass")
    for _ in range(bytewise):
        body = rng.choice(BYTE_CHANGES)(body, rng)
    return body


def _odd(rng: Random) -> Any:
    return deepcopy(rng.choice(ODD_VALUES))  # it may be changed in its turn


def _restructured(text: str, rng: Random, changes: int) -> str:
    document = json.loads(text)
    for _ in range(changes):
        document = _changed(document, rng)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5)


def _changed(document: Any, rng: Random) -> Any:
    """The document, changed in one place: a document inside a text is such a place too."""
    place = rng.choice(list(_places(document)))
    if not place:
        return rng.choice(([document], [document, document], {"Records": document}, _odd(rng)))
    parent = document
    for step in place[:-1]:
        parent = parent[step]
    rng.choice(CHANGES)(parent, place[-1], rng)
    return document


def _places(document: Any) -> Iterator[Place]:
    """The way to each value in a document, the empty one to itself."""
    yield ()
    children: Any = ()
    if isinstance(document, dict):
        children = document.items()
    elif isinstance(document, list):
        children = enumerate(document)
    for name, child in children:
        yield from ((name, *place) for place in _places(child))


def _replace(parent: Any, name: Any, rng: Random) -> None:
    parent[name] = _odd(rng)


def _remove(parent: Any, name: Any, _rng: Random) -> None:
    del parent[name]


def _enclose(parent: Any, name: Any, rng: Random) -> None:
    value = parent[name]
    parent[name] = rng.choice(([value], {"object": value}, json.dumps(value), [value, value]))


def _rename(parent: Any, name: Any, rng: Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice(ODD_NAMES)] = parent.pop(name)
    else:
        parent.insert(name, _odd(rng))


def _spoil(parent: Any, name: Any, rng: Random) -> None:
    """Change a text in the middle; a document in it is changed as a document."""
    value = parent[name]
    if not isinstance(value, str):
        _replace(parent, name, rng)
    elif value.startswith("{"):
        parent[name] = _inner(value, rng)
    else:
        at = rng.randrange(len(value) + 1)
        odd = rng.choice([text for text in ODD_VALUES if isinstance(text, str)])
        parent[name] = value[:at] + odd + value[at + rng.randrange(3) :]


def _inner(text: str, rng: Random) -> str:
    try:
        return json.dumps(_changed(json.loads(text), rng))
    except ValueError:
        return text[: rng.randrange(len(text))]


CHANGES: tuple[Callable[[Any, Any, Random], None], ...] = (
    _replace,
    _replace,
    _remove,
    _enclose,
    _rename,
    _spoil,
    _spoil,
)


def _flip(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) or 1)
    return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]


def _cut(body: bytes, rng: Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _leave_out(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at + rng.randrange(1, 40) :]


def _insert(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(ODD_BYTES) + body[at:]


def _repeat(body: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at : at + rng.randrange(1, 200)] + body[at:]


BYTE_CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (_flip, _cut, _leave_out, _insert, _repeat)

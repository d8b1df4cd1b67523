"""What the decoders take: one raw file, decompressed, with what its records fall back to.

What belongs here: the input of ``decode``. What does not: how the bytes were fetched (``store``) or decompressed.
"""

from __future__ import annotations

from dataclasses import dataclass

IDENTITY_DIGITS = 24
"""Length of a raw object's identity: 96 bits in hexadecimal."""


@dataclass(frozen=True, slots=True)
class RawPayload:
    """One raw file, decompressed, or a piece of a large one (``cutting``).

    ``identity`` (24 hex digits, from ``segments.ids.raw_identity``) is the first part of each of its records' chq_id.
    ``event_time_ms`` is the object's own time: what a record without a time falls back to, and what "ahead" is
    measured from. ``payload`` is an OTLP Export{Logs,Metrics,Trace}ServiceRequest in protobuf. ``piece`` numbers pieces
    from 1, and is 0 of the whole; ``first_ordinal``: how many records of the file are in the pieces before it.

    Raises ValueError where the identity has another length: a bug of the caller, not bad input.
    """

    raw_object_id: int
    key: str
    identity: str
    event_time_ms: int
    payload: bytes
    piece: int = 0
    first_ordinal: int = 0

    def __post_init__(self) -> None:
        if len(self.identity) != IDENTITY_DIGITS or not self.identity.isascii():
            raise ValueError(f"identity of {self.key} is {self.identity!r}: {IDENTITY_DIGITS} hex digits are needed")

    @property
    def input(self) -> str:
        """What a segment that was made of it is said to be made of."""
        return f"{self.identity}/{self.piece}" if self.piece else self.identity

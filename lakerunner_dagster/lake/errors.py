"""Every error that the lake raises, by what its catcher must do about it.

What belongs here: exception types, one for each different reaction. What does not: messages (they
stand where the error is raised, and say what was wrong, with what input, and what to do).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakerunner_dagster.lake.model import Segment


class LakeError(Exception):
    """Base of all errors of the lake."""


class InputError(LakeError):
    """One raw object, notification or record is unusable: it alone is set aside, the work around it goes on.

    ``reason`` is a short stable snake_case word that is stored, counted and shown (``truncated_gzip``).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SegmentUnusable(LakeError):
    """One segment that was to be read anew is not what its index row says: it alone is set aside, the others go on.

    ``segment`` is its index row, ``reason`` a short stable snake_case word, as of :class:`InputError`.
    """

    def __init__(self, segment: Segment, reason: str, message: str) -> None:
        super().__init__(message)
        self.segment = segment
        self.reason = reason


class InputsUnreadable(LakeError):
    """Without the segments that were set aside records would go out of sight: what is published stays, until they can
    be read.
    """


class ObjectMissing(LakeError):
    """The object is not in the store: it ends as ``missing``."""


class StoreUnavailable(LakeError):
    """The object store did not answer, or not as it should: try again later, nothing is wrong with the work."""


class StoreDenied(LakeError):
    """The object store refuses our credentials or our request: trying again as we are cannot help."""


class BucketMissing(StoreDenied):
    """The object store has no such bucket: no right is missing."""


class QueueUnavailable(LakeError):
    """A cloud's queue did not answer, or not as it should: its messages are still there, try again later."""


class QueueDenied(LakeError):
    """A cloud's queue is not there, or refuses us: a person must mend what the message says."""


class BusUnavailable(LakeError):
    """Kafka did not acknowledge in time: what was to be sent is still ours, try again later."""


class LakeDatabaseUnavailable(LakeError):
    """PostgreSQL cannot be reached: try again later."""


class LeaseLost(LakeError):
    """Another run holds the box now: this run must stop without publishing."""


class SwapConflict(LakeError):
    """The published segments are not those that this run has read: compute again from what is there now."""


class ConservationBreach(LakeError):
    """Records out are not records in minus those rejected: nothing may be published."""


class ContractBreach(LakeError):
    """Rows do not fit the segment contract (columns, types, one hour): a fault of ours, nothing may be published."""


class RequestRefused(LakeError):
    """What a person asked for is not there, or cannot be done as things are: the message says what can."""


class ConfigurationError(LakeError):
    """A setting is missing or cannot be used: the message names it and a value that would do."""


class WorkIncomplete(LakeError):
    """A run has done what it could: the boxes or hours that the message lists are as they were, to be tried again."""

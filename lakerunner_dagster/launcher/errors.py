"""What can go wrong between the launcher and a zygote, by what the launcher must do about it.

What belongs here: exception types. What does not: their messages, which stand where the error is raised.
"""

from __future__ import annotations

from lakerunner_dagster.lake.errors import LakeError


class ZygoteFailed(LakeError):
    """Nothing can be forked here: the run is launched in another way."""


class ZygoteLost(LakeError):
    """The zygote or its child has ended, and the run that it was asked for does not go: another may be asked."""

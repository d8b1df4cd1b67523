"""What can go wrong with an embedded service, by what its catcher must do about it.

What belongs here: exception types. What does not: their messages, which stand where the error is raised.
"""

from __future__ import annotations

from lakerunner_dagster.lake.errors import LakeError


class ServiceFailed(LakeError):
    """An embedded service cannot be started or stopped here: the message says why and what to do."""


class AlreadyRunning(LakeError):
    """Another process holds these services: use them, or stop that process first."""

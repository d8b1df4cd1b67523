"""The lake as a Dagster resource: opened for a run or a check, closed after it.

What belongs here: how long the lake stays open. What does not: what is done with it, and how it is opened
(``lake.runs.context``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from lakerunner_dagster.lake.runs.context import Lake, open_lake
from lakerunner_dagster.lake.settings import Settings


class LakeResource(dg.ConfigurableResource[Lake]):
    """The lake of the settings in the environment.

    It has no configuration of its own: what is configured in Dagster is stored with each run, secrets too.
    """

    @contextmanager
    def open(self) -> Iterator[Lake]:
        """The lake, for as long as the context lasts; ConfigurationError where the settings name none."""
        lake = open_lake(Settings.current())
        try:
            yield lake
        finally:
            lake.close()

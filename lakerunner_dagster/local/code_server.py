"""The code server of `dagster dev`: whether its code is loaded, and loading it anew where it has ended.

What belongs here: what ``dev`` asks of Dagster's webserver. What does not: the processes (``dev``, ``processes``).

`dagster dev` puts a second process before the one that holds the definitions. It starts the one in front again when it
ends, and the webserver and the daemon end it all when one of them does. But nobody notices when the process that holds
the definitions is killed, as where memory is short: every tick fails from then on.
"""

from __future__ import annotations

import json
import time
import urllib.request
from http.client import HTTPException
from typing import Any

from lakerunner_dagster.local.errors import ServiceFailed

ANSWER_SECONDS = 10.0
LOAD_SECONDS = 120.0
"""Loading the definitions, which a reload waits for, takes seconds on a busy machine."""

PATIENCE_SECONDS = 15.0
"""A code server that has not answered for so long is not merely busy: Dagster asks it each second."""

_ENTRIES = """
    query { workspaceOrError {
        ... on Workspace { locationEntries { name locationOrLoadError { ... on PythonError { className message } } } }
        ... on PythonError { message }
    } }
"""
_RELOAD = """
    mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) {
        ... on PythonError { message }
    } }
"""
_UNREACHABLE = "DagsterUserCodeUnreachableError"


class CodeServer:
    """What Dagster's webserver at ``ui_url`` knows of its one code location."""

    def __init__(self, ui_url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._ui_url = ui_url
        self._patience_seconds = patience_seconds
        self._reached = time.monotonic()

    def require_loaded(self) -> None:
        """ServiceFailed, with Dagster's own words, unless it has loaded our definitions."""
        workspace = self._ask(_ENTRIES, LOAD_SECONDS)["workspaceOrError"]
        errors = [entry["locationOrLoadError"].get("message") for entry in workspace.get("locationEntries", [])]
        if not errors or any(errors):
            raise ServiceFailed(f"Dagster could not load the definitions: {errors or workspace.get('message')}")

    def mend(self) -> bool:
        """Have a code server that has ended started anew; whether that was needed. Call it again and again.

        What is wrong with the code itself is left to whoever changes it, and a webserver that has ended to ``dev``.
        """
        try:
            gone = self._unreachable()
            lost = bool(gone) and time.monotonic() - self._reached > self._patience_seconds
            if lost:
                for name in gone:
                    self.reload(name)
        except (OSError, HTTPException):
            return False
        if lost or not gone:
            self._reached = time.monotonic()  # lost: the webserver hears of the new one a moment later
        return lost

    def reload(self, name: str) -> None:
        """Have the code of a location loaded anew, as the button in the UI does."""
        self._ask(_RELOAD, LOAD_SECONDS, name=name)

    def _unreachable(self) -> list[str]:
        """The code locations whose server does not answer."""
        entries = self._ask(_ENTRIES, ANSWER_SECONDS)["workspaceOrError"].get("locationEntries", [])
        return [one["name"] for one in entries if one["locationOrLoadError"].get("className") == _UNREACHABLE]

    def _ask(self, query: str, seconds: float, **variables: str) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310  # a loopback address of ours
            f"{self._ui_url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
            data: dict[str, Any] = json.load(response)["data"]
        return data

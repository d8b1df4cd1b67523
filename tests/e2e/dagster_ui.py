"""Dagster's own API, as its UI uses it.

What belongs here: questions to a running webserver. What does not: what a test makes of the answers.
"""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_MATERIALISATIONS = """
    query ($key: AssetKeyInput!, $partitions: [String!]) {
        assetOrError(assetKey: $key) { ... on Asset {
            assetMaterializations(partitions: $partitions, limit: 100) {
                runId partition
                metadataEntries { label ... on IntMetadataEntry { intValue } }
            }
        } }
    }
"""
_RUN = """
    query ($run: ID!) { runOrError(runId: $run) { ... on Run { status tags { key value } } } }
"""
_LAUNCH = """
    mutation ($params: ExecutionParams!) {
        launchPipelineExecution(executionParams: $params) {
            __typename
            ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message }
        }
    }
"""
_CHECKS = """
    query ($key: AssetKeyInput!) {
        assetNodeOrError(assetKey: $key) { ... on AssetNode { assetChecksOrError { ... on AssetChecks { checks {
            name executionForLatestMaterialization { evaluation { success } }
        } } } } }
    }
"""
_TICKS = """
    query ($repository: RepositorySelector!) {
        sensorsOrError(repositorySelector: $repository) { ... on Sensors { results {
            name sensorState { status ticks(limit: 50) { status error { message } } }
        } } }
    }
"""
_REPOSITORY = {"repositoryLocationName": "lakerunner", "repositoryName": "__repository__"}


@dataclass(frozen=True, slots=True)
class Materialisation:
    """An event of an asset, with the metadata that are whole numbers."""

    run_id: str
    partition: str
    counts: dict[str, int]


class DagsterUI:
    """The webserver at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port = port

    def answers(self) -> bool:
        """Whether it takes questions by now."""
        try:
            return self._request("GET", "/server_info")[0] == HTTPStatus.OK
        except OSError:
            return False

    def materialisations(self, asset: str, partition: str) -> list[Materialisation]:
        """The materialisations of a partition, the latest first."""
        found = self._ask(_MATERIALISATIONS, key={"path": [asset]}, partitions=[partition])["assetOrError"]
        return [
            Materialisation(
                run_id=event["runId"],
                partition=event["partition"],
                counts={e["label"]: e["intValue"] for e in event["metadataEntries"] if e.get("intValue") is not None},
            )
            for event in found.get("assetMaterializations", [])
        ]

    def materialise(self, asset: str, partition: str) -> str:
        """Start a run as the button does; its id."""
        params = {
            "selector": {**_REPOSITORY, "jobName": "__ASSET_JOB", "assetSelection": [{"path": [asset]}]},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
        }
        launched = self._ask(_LAUNCH, params=params)["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id: str = launched["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Status and tags of a run."""
        found = self._ask(_RUN, run=run_id)["runOrError"]
        return found["status"], {tag["key"]: tag["value"] for tag in found["tags"]}

    def checks(self, asset: str) -> dict[str, bool]:
        """The checks of an asset that were evaluated, and whether they passed."""
        found = self._ask(_CHECKS, key={"path": [asset]})["assetNodeOrError"]["assetChecksOrError"]["checks"]
        executed = {check["name"]: check["executionForLatestMaterialization"] for check in found}
        return {name: run["evaluation"]["success"] for name, run in executed.items() if run and run["evaluation"]}

    def sensors(self) -> dict[str, list[str]]:
        """The errors of the latest ticks of each sensor that runs."""
        found = self._ask(_TICKS, repository=_REPOSITORY)["sensorsOrError"]["results"]
        return {
            sensor["name"]: [tick["error"]["message"] for tick in sensor["sensorState"]["ticks"] if tick["error"]]
            for sensor in found
            if sensor["sensorState"]["status"] == "RUNNING"
        }

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        status, body = self._request("POST", "/graphql", json.dumps({"query": query, "variables": variables}))
        answer = json.loads(body)
        assert status == HTTPStatus.OK, answer
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def _request(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

"""Dagster's default launcher, which also notices runs whose machine or code server died.

What belongs here: what launches where nothing can be forked. What does not: forking (``fork``), and retries, which
belong to the box (``lake/lrdb``).

A run is a child of the code server that launched it, and that server reports a child that dies. When the server dies
with it (a power cut, kill -9 of all), Dagster's default launcher leaves the run as started for ever: it would hold its
place in the queue and its partition would never be dispatched again.
"""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value


class WatchfulRunLauncher(DefaultRunLauncher):
    """Launches runs in the code server, and tells run monitoring when that server is gone."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the code server that launched the run still executes it; one that is merely slow counts as doing so.

        One that has been started anew at its address knows nothing of the run. A proxy (``dagster code-server``, which
        ``dagster dev`` starts) does not say what the servers behind it execute: its runs go while there is one there.
        """
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "no code server is known to have launched it")
        try:
            executed = deserialize_value(client.get_current_runs(), GetCurrentRunsResult).current_runs
        except DagsterUserCodeUnreachableError as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNAVAILABLE:
                return CheckRunHealthResult(WorkerStatus.FAILED, "the code server that launched it is gone")
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if run.run_id not in executed:
            return CheckRunHealthResult(
                WorkerStatus.FAILED, "the code server at the address that launched it knows nothing of it"
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)

"""The launcher as Dagster knows it: launch, cancel, health and what is known of a run's process.

What belongs here: Dagster's side. What does not: processes (``zygotes``, ``process``), and retries, which belong to the
box (``lake/lrdb``): no run is resumed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
import psutil
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._api.get_server_id import sync_get_server_id
from dagster._config.config_schema import UserConfigSchema
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

from lakerunner_dagster.launcher.child import report_end
from lakerunner_dagster.launcher.errors import ZygoteFailed, ZygoteLost
from lakerunner_dagster.launcher.process import RunProcess, resident_bytes
from lakerunner_dagster.launcher.protocol import Load
from lakerunner_dagster.launcher.watchful import WatchfulRunLauncher
from lakerunner_dagster.launcher.zygotes import Code, Launched, ZygoteHandle, Zygotes

PLACE_SECONDS = 60.0
"""How long a launch waits for a place; well within the time that run monitoring gives a run to start."""

PLACE_POLL_SECONDS = 0.2

RUNS_PER_CHILD = 50
"""What a library leaks in a run is gone after so many, and forking costs a fiftieth of what it did."""

FREE_SECONDS = 60.0
"""Beyond the time between two runs of a source that sends a little, and soon enough to give memory back."""

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
_LOG = logging.getLogger(__name__)


class ForkRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Launches each run in a fork of a warm process, and where that cannot be done in the code server.

    A process executes ``runs_per_child`` runs at the most, one after the other (1: each run has one of its own), and
    ends when there was none for it for ``free_seconds``.

    At most ``max_children`` runs of a code location go at once. A launch beyond them waits a minute for a place, which
    holds the run queue back; then it fails with the one error for which the queue takes the run back and tries it
    again. With the queue's own limit at or below it, that never happens.

    ``memory_limit_bytes`` bounds what a run's process may hold in memory; ``fallback: false`` fails a run instead of
    launching it in the code server.
    """

    def __init__(
        self,
        *,
        max_children: int,
        runs_per_child: int,
        free_seconds: float,
        memory_limit_bytes: int | None,
        fallback: bool,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self._max_children = max_children
        self._runs_per_child = runs_per_child
        self._free_seconds = free_seconds
        self._memory_limit_bytes = memory_limit_bytes
        self._falls_back = fallback
        self._inst_data = inst_data
        self._zygotes = Zygotes()
        self._stock = WatchfulRunLauncher()
        self._warned: set[str] = set()
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where dagster.yaml configures it."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """What dagster.yaml may say."""
        return {
            "max_children": dg.Field(dg.IntSource, default_value=32),
            "runs_per_child": dg.Field(dg.IntSource, default_value=RUNS_PER_CHILD),
            "free_seconds": dg.Field(float, default_value=FREE_SECONDS),
            "memory_limit_bytes": dg.Field(dg.Noneable(dg.IntSource), default_value=None),
            "fallback": dg.Field(dg.BoolSource, default_value=True),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """From dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    def register_instance(self, instance: DagsterInstance) -> None:
        """Know the instance, as the launcher behind this one must."""
        super().register_instance(instance)
        self._stock.register_instance(instance)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Have the run executed in a process of its own; it is when this returns."""
        try:
            self._launch_forked(context)
        except (ZygoteFailed, ZygoteLost) as error:
            if not self._falls_back:
                raise
            self._warn(str(error))
            self._stock.launch_run(context)

    def _launch_forked(self, context: LaunchRunContext) -> None:
        try:
            self._launch_by(self._zygote(context), context.dagster_run)
        except ZygoteLost:  # it or its child was killed before the run was told to go: the run does not
            self._launch_by(self._zygote(context), context.dagster_run)

    def _launch_by(self, zygote: ZygoteHandle, run: DagsterRun) -> None:
        try:
            launched = self._launch_when_there_is_a_place(zygote, run.run_id)
        except (ZygoteLost, ZygoteFailed):
            self._zygotes.lost(zygote)
            raise
        if launched is Launched.ALREADY_GOES:
            self._instance.report_engine_event(
                "Another process of this machine already executes the run: this launch is ignored.", run, cls=type(self)
            )

    def _launch_when_there_is_a_place(self, zygote: ZygoteHandle, run_id: str) -> Launched:
        deadline = time.monotonic() + PLACE_SECONDS
        while (launched := zygote.launch(run_id)) is Launched.NO_PLACE:
            run = self._instance.get_run_by_id(run_id)
            if run is None or run.status is DagsterRunStatus.CANCELING or run.is_finished:
                report_end(self._instance, run_id, "The run was canceled before there was a place for it.")
                break
            if time.monotonic() > deadline:
                raise DagsterUserCodeUnreachableError(
                    f"{self._max_children} runs of its code location go (max_children of the run launcher in "
                    f"dagster.yaml), and none has ended within {PLACE_SECONDS:g} s"
                )
            time.sleep(PLACE_POLL_SECONDS)
        return launched

    def _zygote(self, context: LaunchRunContext) -> ZygoteHandle:
        """The zygote for a run's code as its code server has it now; ZygoteFailed where there can be none."""
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            raise ZygoteFailed(f"{sys.platform} has no processes to be watched as Linux has")
        run = context.dagster_run
        if context.workspace is None or run.remote_job_origin is None or run.job_code_origin is None:
            raise ZygoteFailed(f"run {run.run_id} does not say where its code is")
        name = run.remote_job_origin.location_name
        location = context.workspace.get_code_location(name)
        if not isinstance(location, GrpcServerCodeLocation) or location.host not in _LOCAL_HOSTS:
            raise ZygoteFailed(f"code location {name} is loaded by no server of this machine")
        origin = run.job_code_origin.repository_origin
        code = Code(name, sync_get_server_id(location.client), origin.executable_path)
        return self._zygotes.serving(
            code,
            lambda: Load(
                instance_ref=serialize_value(self._instance.get_ref()),
                repository_origin=serialize_value(origin),
                max_children=self._max_children,
                runs_per_child=self._runs_per_child,
                free_seconds=self._free_seconds,
                memory_limit_bytes=self._memory_limit_bytes,
            ),
        )

    def _warn(self, why: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            _LOG.warning("runs are started in the code server, which is slower, because %s", why)

    def terminate(self, run_id: str) -> bool:
        """Cancel a run: interrupt its process, or see to it that it does not begin. False where it has ended."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        if GRPC_INFO_TAG in run.tags:
            return bool(self._stock.terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        # Looked for only now: a process that has not said who it is by now will find the run canceled.
        process = RunProcess.of(self._tags(run_id))
        if process is None or process.interrupt():
            return True
        if not process.is_of_this_machine():
            self._instance.report_engine_event(
                f"The run cannot be interrupted from here: it is executed by {process}.", run, cls=type(self)
            )
            return False
        report_end(self._instance, run_id, f"The run was canceled; {process} had ended before.")
        return True

    def _tags(self, run_id: str) -> Mapping[str, str]:
        run = self._instance.get_run_by_id(run_id)
        return run.tags if run is not None else {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask."""
        return True

    @property
    def supports_resume_run(self) -> bool:
        """A run that has died is not taken up again: its box is."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process goes on; where not, why it ended, if anybody has seen it end."""
        if GRPC_INFO_TAG in run.tags:
            return self._stock.check_run_worker_health(run)
        process = RunProcess.of(run.tags)
        if process is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "no process is known to execute it")
        if process.is_alive():
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(process))
        return CheckRunHealthResult(WorkerStatus.FAILED, self._end_of(run.run_id, process), run_worker_id=str(process))

    def _end_of(self, run_id: str, process: RunProcess) -> str:
        if not process.is_of_this_machine():
            return f"{process} is gone: this is another machine, or it was started anew since"
        return self._zygotes.fate(run_id) or f"{process} is gone"

    def get_run_worker_debug_info(
        self,
        run: DagsterRun,
        include_container_logs: bool | None = True,  # noqa: FBT001, ARG002  # Dagster's signature
    ) -> str | None:
        """The run's process as it is now: whether it lives, its state, memory and threads."""
        process = RunProcess.of(run.tags)
        if process is None:
            return None
        if not process.is_alive():
            return f"{process}: {self._end_of(run.run_id, process)}"
        try:
            state = psutil.Process(process.pid)
            return (
                f"{process}: {state.status()}, {resident_bytes(process.pid)} bytes resident, "
                f"{state.num_threads()} threads, {sum(state.cpu_times()[:2]):.1f} s of CPU"
            )
        except psutil.NoSuchProcess:
            return f"{process} is gone"

    def dispose(self) -> None:
        """Let the zygotes end, each with its last child."""
        self._zygotes.close()
        self._stock.dispose()

"""A Dagster instance on PostgreSQL with a code server, and runs launched in it as the daemon launches them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import dagster as dg
import psutil
from dagster._core.definitions.selector import JobSubsetSelector
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.remote_representation.grpc_server_registry import GrpcServerRegistry
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget, WorkspaceLoadTarget
from dagster._grpc.constants import GrpcServerCommand

from lakerunner_dagster.instance.lanes import UNFINISHED
from lakerunner_dagster.launcher.fork import ForkRunLauncher
from lakerunner_dagster.launcher.process import RunProcess
from tests.waiting import eventually

LOCATION = Path(__file__).with_name("location.py")
NAME = "tested"
JOB = "__ASSET_JOB"
HEARTBEAT_SECONDS = 20
"""A code server that has not heard from its daemon for so long ends by itself."""

FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a platform is: what another process needs to open it too."""

    home: Path
    code: Path
    marks: Path

    def mark(self, name: str) -> str | None:
        """What an asset has said under this name; None where nothing yet."""
        path = self.marks / name
        return path.read_text() if path.exists() else None

    def end(self, run_id: str) -> None:
        """Let the asset of a run of ``waiting`` end."""
        (self.marks / f"end-{run_id}").touch()


@dataclass(frozen=True, slots=True)
class Launching:
    """A running platform."""

    place: Place
    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext

    @property
    def launcher(self) -> ForkRunLauncher:
        return cast("ForkRunLauncher", self.instance.run_launcher)

    def create(
        self,
        asset: str,
        job_name: str = JOB,
        tags: Mapping[str, str] = MappingProxyType({}),
        checks: frozenset[dg.AssetCheckKey] | None = None,
    ) -> str:
        """A run of an asset and these checks (None: all that it has), not launched yet; its id."""
        context = self.workspace.create_request_context()
        location = context.get_code_location(NAME)
        (repository,) = location.get_repositories().values()
        key = dg.AssetKey(asset)
        job = location.get_job(
            JobSubsetSelector(
                location_name=NAME,
                repository_name=repository.name,
                job_name=job_name,
                op_selection=None,
                asset_selection=[key],
                asset_check_selection=checks,
            )
        )
        plan = location.get_execution_plan(job, {}, step_keys_to_execute=None, known_state=None)
        run = self.instance.create_run(
            job_name=job.name,
            run_id=None,
            run_config={},
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags=dict(tags),
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=plan.execution_plan_snapshot,
            job_snapshot=job.job_snapshot,
            parent_job_snapshot=job.parent_job_snapshot,
            asset_selection={key},
            asset_check_selection=checks,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
            asset_graph=context.asset_graph,
        )
        return str(run.run_id)

    def launch(self, run_id: str) -> None:
        """Launch a run as the daemon does when it takes it from the queue."""
        self.instance.launch_run(run_id, self.workspace.create_request_context())

    def run(self, asset: str) -> str:
        """Create a run of an asset and launch it; its id."""
        run_id = self.create(asset)
        self.launch(run_id)
        return run_id

    def context(self, run_id: str) -> LaunchRunContext:
        """What a launcher is given for a run."""
        return LaunchRunContext(self.loaded(run_id), self.workspace.create_request_context())

    def loaded(self, run_id: str) -> dg.DagsterRun:
        """The run as it is stored."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        return self.loaded(run_id).status

    def wait(self, run_id: str) -> dg.DagsterRunStatus:
        """How a run ends."""
        eventually(lambda: self.status(run_id) in FINISHED, f"run {run_id} ends")
        return self.status(run_id)

    def messages(self, run_id: str) -> str:
        """What the run's events say, a line each."""
        return "\n".join(
            (entry.dagster_event.message if entry.dagster_event else entry.user_message) or ""
            for entry in self.instance.all_logs(run_id)
        )

    def first_line(self, run_id: str) -> float:
        """When the asset of a run was called, in epoch seconds."""
        (started, *_) = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_START)
        return float(started.timestamp)

    def failure(self, run_id: str) -> str:
        """What the event says with which a run has failed."""
        failed = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        return "\n".join(str(entry.dagster_event.message) for entry in failed if entry.dagster_event)

    def process(self, run_id: str) -> RunProcess:
        """The run's process, once it has said who it is."""
        eventually(lambda: self._process(run_id) is not None, f"run {run_id} has a process")
        found = self._process(run_id)
        assert found is not None
        return found

    def _process(self, run_id: str) -> RunProcess | None:
        return RunProcess.of(self.loaded(run_id).tags)

    def begun(self, run_id: str) -> RunProcess:
        """The process of a run of ``waiting``, once its asset has begun."""
        eventually(lambda: self.place.mark(f"begun-{run_id}") is not None, f"the asset of {run_id} begins")
        return self.process(run_id)

    def succeeded(self, asset: str) -> str:
        """A run of an asset that has succeeded; its id."""
        run_id = self.run(asset)
        assert self.wait(run_id) is dg.DagsterRunStatus.SUCCESS, self.messages(run_id)
        return run_id

    def free(self, run_id: str) -> psutil.Process:
        """The process of a run that has succeeded, once it waits for another one."""
        process = self.process(run_id)
        eventually(lambda: not process.is_alive(), f"the process of {run_id} is free")
        return psutil.Process(process.pid)

    def reload(self) -> None:
        """Load the code location anew, as the button in the UI does."""
        self.workspace.reload_code_location(NAME)

    def zygotes(self) -> list[psutil.Process]:
        """The zygotes that this process has started and that live."""
        return [one for one in psutil.Process().children() if is_zygote(one)]


def forking(**config: Any) -> dict[str, Any]:
    """The launcher under test, as dagster.yaml names it."""
    return {
        "module": "lakerunner_dagster.launcher.fork",
        "class": "ForkRunLauncher",
        "config": {"fallback": False, **config},
    }


def starting() -> dg.DagsterEvent:
    """The event with which a run is taken from the queue to be launched."""
    return dg.DagsterEvent(event_type_value=dg.DagsterEventType.PIPELINE_STARTING.value, job_name=JOB)


def is_zygote(process: psutil.Process) -> bool:
    """Whether it is a zygote (or a child of one, which looks like it)."""
    try:
        return "lakerunner_dagster.launcher.zygote" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def place_in(directory: Path, database_url: str, launcher: Mapping[str, Any]) -> Place:
    """A home with a dagster.yaml that names a launcher, and a copy of the tests' code location."""
    place = Place(directory / "home", directory / "code", directory / "marks")
    for each in (place.home, place.code, place.marks):
        each.mkdir()
    shutil.copyfile(LOCATION, place.code / "location.py")
    storage = {"module": "lakerunner_dagster.instance.storage", "class": "SettingsPostgresStorage"}
    configured = {
        "storage": {"custom": storage},
        "run_launcher": dict(launcher),
        "telemetry": {"enabled": False},
    }
    (place.home / "dagster.yaml").write_text(json.dumps(configured))
    os.environ.update(environment(place, database_url))
    return place


def environment(place: Place, database_url: str) -> dict[str, str]:
    """The variables that the instance and the code location of a place read."""
    return {
        "LAKERUNNER_DAGSTER_DATABASE_URL": database_url.replace("postgresql:", "postgresql+psycopg2:"),
        "TEST_DATABASE": database_url,
        "TEST_MARKS": str(place.marks),
    }


def code_of(place: Place) -> PythonFileTarget:
    """The code location of a place."""
    return PythonFileTarget(
        python_file=str(place.code / "location.py"),
        attribute="defs",
        working_directory=str(place.code),
        location_name=NAME,
    )


@contextmanager
def launching(place: Place, target: WorkspaceLoadTarget) -> Iterator[Launching]:
    """The platform of a place; when it closes, so do its code server, its zygotes and their children."""
    with (
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(place.home))) as instance,
        GrpcServerRegistry(
            instance.get_ref(),
            GrpcServerCommand.API_GRPC,
            heartbeat_ttl=HEARTBEAT_SECONDS,
            startup_timeout=60,
            wait_for_processes_on_shutdown=True,  # of reloaded code too
        ) as servers,
        WorkspaceProcessContext(instance, target, grpc_server_registry=servers) as workspace,
    ):
        running = Launching(place, instance, workspace)
        yield running
        for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
            process = RunProcess.of(run.tags)
            if process is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        zygotes = running.zygotes()
        instance.run_launcher.dispose()
        for zygote in zygotes:
            zygote.wait(60)

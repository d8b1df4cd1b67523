"""What a zygote has done once, so that no run has to: imports, definitions, and the first look at Dagster's storage.

What belongs here: what is loaded and rehearsed before the first fork. What does not: forking (``zygote``).

Nothing is left open: a child opens what it needs itself.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from contextlib import suppress

from dagster._cli.utils import get_instance_for_cli
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import RepositoryPythonOrigin
from dagster._core.utils import make_new_run_id
from dagster._serdes import ConfigurableClassData, deserialize_value
from dagster._utils.hosted_user_process import recon_repository_from_origin

from lakerunner_dagster.instance import pool
from lakerunner_dagster.launcher import protocol

FOUND_ON_THE_WAY = (
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.system_config.composite_descent",
    "dateutil.relativedelta",
    "fsspec.implementations.local",
    "numpy.ma",
    "psycopg2.extras",
    "upath.implementations.local",
)
"""What a run imports only as it goes, a quarter of its CPU where each has to: an instance's, an executor's, Arrow's."""


def load(what: protocol.Load) -> None:
    """Import what a run needs, build its repository as the code server does, and look at its storage once."""
    ref = deserialize_value(what.instance_ref, InstanceRef)
    for part in ref:
        if isinstance(part, ConfigurableClassData):
            importlib.import_module(part.module_name)
    for name in FOUND_ON_THE_WAY:
        with suppress(ImportError):
            importlib.import_module(name)
    origin = deserialize_value(what.repository_origin, RepositoryPythonOrigin)
    recon_repository_from_origin(origin).get_definition().load_all_definitions()
    _rehearse(ref)


def _rehearse(ref: InstanceRef) -> None:
    """Open Dagster's storage, look for a run, and close it.

    Children then know how new its schema is (``instance.schema``), and find its statements compiled. A storage that
    does not answer now is none of our business: the child that needs it says so.
    """
    try:
        with get_instance_for_cli(instance_ref=ref) as instance:
            instance.get_run_by_id(make_new_run_id())
    except Exception:  # noqa: BLE001  # whatever the storage has to say
        sys.stderr.write(f"runs start slower, for Dagster's storage did not answer: {traceback.format_exc(limit=0)}")
    finally:
        pool.close_connections()


def freeze() -> None:
    """Leave what is loaded out of every later collection: it would copy the pages that children share."""
    gc.collect()
    gc.freeze()

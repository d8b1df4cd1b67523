"""What Dagster's daemon does with a backfill that a command has launched, in this process."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG

from lakerunner_dagster.commands import backfill
from lakerunner_dagster.instance import backfills


def run_like_the_daemon(instance: dg.DagsterInstance, backfill_id: str) -> None:
    """Materialise what the backfill asks for, tier by tier, as its daemon would; a run may fail."""
    from lakerunner_dagster.definitions import defs  # noqa: PLC0415 - seconds that other tests need not wait

    found = instance.get_backfill(backfill_id)
    assert found is not None
    target = found.get_asset_backfill_data(defs.resolve_asset_graph()).target_subset
    succeeded = []
    for key, subset in target.partitions_subsets_by_asset_key.items():
        for partition in sorted(subset.get_partition_keys()):
            job = defs.resolve_implicit_global_asset_job_def()
            result = job.get_subset(asset_selection={key}).execute_in_process(
                instance=instance, partition_key=partition, tags={BACKFILL_ID_TAG: backfill_id}, raise_on_error=False
            )
            succeeded.append(result.success)
    ended = BulkActionStatus.COMPLETED_SUCCESS if all(succeeded) else BulkActionStatus.COMPLETED_FAILED
    instance.update_backfill(found._replace(status=ended))


def daemon_at_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each backfill be carried out when its command first looks how far it is; their ids, as they are."""
    real = backfills.progress
    monkeypatch.setattr(backfill, "LOOK_SECONDS", 0.0)
    ran: list[str] = []

    def progress(instance: dg.DagsterInstance, backfill_id: str) -> backfills.Progress:
        if backfill_id not in ran:
            ran.append(backfill_id)
            run_like_the_daemon(instance, backfill_id)
        return real(instance, backfill_id)

    monkeypatch.setattr(backfills, "progress", progress)
    return ran

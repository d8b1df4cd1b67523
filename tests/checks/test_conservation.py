"""Conservation: a run whose sums do not close cannot look well."""

from __future__ import annotations

from uuid import UUID

from lakerunner_dagster.checks.conservation import conservation_result
from lakerunner_dagster.lake.errors import ConservationBreach, StoreUnavailable, WorkIncomplete
from lakerunner_dagster.lake.model import Source
from lakerunner_dagster.lake.runs.report import Step
from lakerunner_dagster.lake.signals import Signal

SOURCE = Source(UUID(int=1), "acme", "web", 1, "lake")


def _step(read: int, written: int, rejected: int = 0, elsewhere: int = 0) -> Step:
    return Step(
        source=SOURCE,
        signal=Signal.LOGS,
        dateint=20260203,
        run_id="run",
        box_id=1,
        hour=None,
        segments=(),
        superseded=0,
        objects=1,
        set_aside=(),
        records_read=read,
        records_written=written,
        rejected={"no_time": rejected} if rejected else {},
        elsewhere=elsewhere,
        raw_bytes=0,
        bytes_in=0,
        bytes_out=0,
        seconds=0.0,
        peak_memory_bytes=0,
    )


def test_read_is_written_and_rejected_and_elsewhere() -> None:
    result = conservation_result([_step(10, 7, 2, 1), _step(3, 3)], [])
    assert result.passed
    assert result.metadata["records read"].value == 13
    assert result.metadata["records unaccounted for"].value == 0


def test_a_loss_in_one_transaction_is_not_made_up_for_by_a_surplus_in_another() -> None:
    result = conservation_result([_step(10, 9), _step(10, 11)], [])
    assert not result.passed
    assert result.metadata["transactions that do not add up"].value == 2


def test_a_breach_that_stopped_a_transaction_fails_the_check() -> None:
    summed_up = WorkIncomplete(f"acme/web: 1 steps were not done:\n- box 7: {ConservationBreach.__name__}: 9 of 10")
    assert not conservation_result([_step(1, 1)], [ConservationBreach("9 of 10")]).passed
    assert not conservation_result([_step(1, 1)], [summed_up]).passed


def test_other_errors_are_no_breach() -> None:
    assert conservation_result([_step(1, 1)], [StoreUnavailable("the bucket did not answer")]).passed

"""A run's right to a box, held against the box's row.

What belongs here: the check that every transaction of a run on its box begins with. What does not: claiming, renewing
and giving back (``boxes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from lakerunner_dagster.lake.errors import LeaseLost
from lakerunner_dagster.lake.model import Lease

if TYPE_CHECKING:
    from lakerunner_dagster.lake.lrdb.connection import Conn


def hold(conn: Conn, lease: Lease, organization_id: UUID) -> None:
    """Lock the leased box until the transaction ends, so that nobody can claim it meanwhile. LeaseLost.

    A lease that has expired and that nobody has claimed since is still the run's.
    """
    held = conn.execute(
        "SELECT FROM boxes WHERE box_id = %s AND organization_id = %s AND lease_token = %s FOR UPDATE",
        (lease.box_id, organization_id, lease.token),
    )
    if held.rowcount == 0:
        raise lease_lost(lease)


def lease_lost(lease: Lease) -> LeaseLost:
    """The error of a run whose lease is not the box's any more."""
    return LeaseLost(
        f"box {lease.box_id} is not leased to attempt {lease.attempt} (run {lease.run_id}) any more: "
        "stop without publishing, another run works on it or has"
    )

"""Cut rows at the hours of UTC: a segment holds one hour of one day.

What belongs here: the cut. What does not: order within an hour (``order``), writing (``parquet``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lakerunner_dagster.lake.errors import ContractBreach
from lakerunner_dagster.lake.model import HOUR_MS, dateint_of, hour_of

if TYPE_CHECKING:
    import pyarrow as pa


def split_by_hour(table: pa.Table) -> list[tuple[int, int, pa.Table]]:
    """(dateint, hour, rows) for each UTC hour that holds a row by ``chq_timestamp`` (ms), ascending.

    Rows keep their order within an hour. The tables share the memory of one.

    :raises ContractBreach: a row has no time.
    """
    times = table.column("chq_timestamp")
    if times.null_count:
        raise ContractBreach(f"{times.null_count} rows have no chq_timestamp: a decoder must reject such records.")
    hours = times.to_numpy() // HOUR_MS
    found, sizes = np.unique(hours, return_counts=True)
    if len(found) > 1:  # the usual box has one hour: spare it the copy
        table = table.take(np.argsort(hours, kind="stable"))
    starts = np.cumsum(sizes) - sizes
    return [
        (dateint_of(hour * HOUR_MS), hour_of(hour * HOUR_MS), table.slice(start, size))
        for hour, start, size in zip(found.tolist(), starts.tolist(), sizes.tolist(), strict=True)
    ]

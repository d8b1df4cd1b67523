"""Rows of metrics that merged, as they are written: in the order and form of a segment, and what each stands on.

What belongs here: what merging buckets of one tier and rolling them up to the next have in common once their rows are
merged. What does not: which rows merge (``telemetry.metric_rows``), files (``output``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lakerunner_dagster.lake.errors import ContractBreach, InputError
from lakerunner_dagster.lake.segments.order import row_order
from lakerunner_dagster.lake.segments.output import Shares
from lakerunner_dagster.lake.segments.reading import unusable
from lakerunner_dagster.lake.segments.stretches import stretch_starts
from lakerunner_dagster.lake.segments.union import Union, in_form
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.metric_rows import merge_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lakerunner_dagster.lake.model import Segment

    Ints = npt.NDArray[np.int64]

COUNT_TOLERANCE = 2.0**-51
"""Sums of counts are exact below 2^53, in whatever order; so close, a difference of one is seen up to 2^50."""


def ordered(rows: pa.Table, became: Ints, inputs: Ints, points: Ints, union: Union) -> tuple[pa.Table, Shares]:
    """Merged rows as they are written. Row i of those that merged, of input ``inputs[i]`` and with ``points[i]`` data
    points, went into row ``became[i]`` of ``rows``.
    """
    order = row_order(rows, SIGNALS[Signal.METRICS].sort_keys)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    firsts = stretch_starts([pa.array(became), pa.array(inputs)])
    at = places[became[firsts]]
    by_place = np.argsort(at, kind="stable")
    shares = Shares(at[by_place], inputs[firsts][by_place], np.add.reduceat(points, firsts)[by_place])
    return in_form(rows.take(pa.array(order.astype(np.int32))), union.schema), shares


def culprit(rows: pa.Table, inputs: Ints, segments: Sequence[Segment]) -> Exception:
    """Whose rows it is that cannot be merged."""
    for number in np.unique(inputs).tolist():
        try:
            merge_rows(rows.filter(pa.array(inputs == number)))
        except InputError as error:
            return unusable(segments[number], error.reason, str(error))
    return ContractBreach("Rows that can be merged by themselves cannot be merged together: a fault of the merge.")

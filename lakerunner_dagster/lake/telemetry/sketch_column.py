"""The column of sketches of a table of rows, decoded: each distinct sketch once.

What belongs here: which row has which sketch. What does not: sketches (``sketch``), their bytes (``sketch_encoding``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lakerunner_dagster.lake.segments.columns import whole
from lakerunner_dagster.lake.telemetry.sketch import Ints, Sketches
from lakerunner_dagster.lake.telemetry.sketch_encoding import decoded, encoded


@dataclass(frozen=True, slots=True)
class SketchColumn:
    """The sketches of rows: that of row i is number ``codes[i]`` of ``pool``, and encoded ``blobs[codes[i]]``."""

    codes: Ints
    pool: Sketches
    blobs: pa.BinaryArray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> SketchColumn:
        """From a column of encoded sketches; those of a dictionary that are used are decoded once, and no other."""
        array = whole(column)
        if array.null_count or not pa.types.is_dictionary(array.type):
            blobs = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
            return cls(np.arange(len(blobs)), decoded(blobs), blobs)
        indices = array.indices.to_numpy()
        used = np.zeros(len(array.dictionary), np.bool_)
        used[indices] = True
        blobs = array.dictionary.take(pa.array(np.flatnonzero(used)))
        return cls((np.cumsum(used) - 1)[indices], decoded(blobs), blobs)

    def replaced(self, rows: Ints, sketches: Sketches) -> SketchColumn:
        """With these sketches in place of those of some rows, which ascend."""
        if len(rows) == len(self.codes):
            return SketchColumn(np.arange(len(rows)), sketches, encoded(sketches))
        column, numbers = self.added(sketches)
        codes = self.codes.copy()
        codes[rows] = numbers
        return SketchColumn(codes, column.pool, column.blobs)

    def added(self, sketches: Sketches) -> tuple[SketchColumn, Ints]:
        """With more sketches in the pool, and the numbers that these have there."""
        column = SketchColumn(
            self.codes,
            Sketches.joined([self.pool, sketches]),
            pa.concat_arrays([self.blobs, encoded(sketches)]),
        )
        return column, np.arange(len(self.pool), len(column.pool))

    def ranks(self, rows: Ints) -> Ints:
        """Numbers that order the sketches of these rows, by their bytes."""
        used, places = np.unique(self.codes[rows], return_inverse=True)
        ranks: Ints = pc.rank(self.blobs.take(pa.array(used)), tiebreaker="dense").to_numpy()[places]
        return ranks

    def array(self) -> pa.DictionaryArray:
        """The column, encoded."""
        return pa.DictionaryArray.from_arrays(pa.array(self.codes.astype(np.int32)), self.blobs)

"""Answers for rows, in the kind that these came in, and samples of them."""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.errors import DataError
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Draw, Query
from daskgmm.model.mixture import Mixture

SKETCH_ROWS = 2**17  # of which quantiles are found: 4 MiB


def drawn(rows: Rows, size: int, mixture: Mixture | None = None) -> tuple[Array, Array]:
    """A sample of the rows, or of their log-densities, and weights that stand for all rows."""
    found = engine_for(rows).reduce(rows, Draw(Threshold(size), mixture))
    if not len(found.rows):
        raise DataError("There is no row of positive weight.")
    points, weight = found.points()
    return points, np.ones(len(points)) if weight is None else weight


def in_kind(rows: Rows, query: Query, columns: int | None, features: tuple[str, ...] | None = None) -> Any:
    """One answer per row: NumPy, a lazy Dask array, or a DataArray with its coordinates.

    ``columns`` are those of components, or of ``features``, if that is given; None stands for a number.
    """
    if rows.x.local:
        values: Any = engine_for(rows).answers(rows, query, query.dtype, columns)
    else:
        values = rows.map(query, dtype=query.dtype, columns=columns)
    return values if rows.table is None else rows.table.answer(values, query.answer, query.missing, features)

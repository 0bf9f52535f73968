"""What can be wrong with the rows of one block; every error says which block."""

from __future__ import annotations

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.rows import Block
from daskgmm.errors import DataError
from daskgmm.model.statistics import Statistics


def check_finite(block: Block) -> None:
    """Raise `DataError` for NaN or infinity in rows of positive weight, else return."""
    x: Array = block.x
    if x.dtype.kind == "f":
        bad = ~np.isfinite(x).all(axis=1)
        if block.weight is not None:
            bad &= block.weight > 0
        if bad.any():
            nan = np.isnan(x[bad]).any()
            remedy = " nan_policy='omit' or a sample_weight of 0 leaves rows out." if nan else ""
            raise DataError(f"Input X contains {'NaN' if nan else 'infinity'}: {block.where(bad)}.{remedy}")
    if block.weight is not None and block.weight.max(initial=0.0) > 1e300:
        raise DataError(f"sample_weight holds values too large to add up: block {block.index}. Scale them.")
    raise DataError(
        f"Input X contains infinity or a value too large for dtype('float64'): block {block.index}. "
        "Scale the data."
    )


def all_finite(x: Array) -> bool:
    """Whether no value is NaN or infinite, without a mask of the size of ``x``."""
    return x.dtype.kind != "f" or not x.size or bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def check_start(block: Block, k: int) -> None:
    """Labels below ``k``, or responsibilities (n, k) that are probabilities, in rows of positive weight."""
    start = block.start
    assert start is not None
    if block.weight is not None:
        start = start[block.weight > 0]
    where = f"block {block.index}"
    if start.ndim == 1:
        if start.size and not (start.min() >= 0 and start.max() < k):
            raise DataError(f"labels_init must lie in 0 ... {k - 1}; {where} has others.")
    elif start.shape[1] != k:
        raise DataError(f"responsibilities_init should have {k} columns, got {start.shape[1]}.")
    elif not (np.all(start >= 0) and np.allclose(start.sum(axis=1), 1.0, atol=1e-5)):
        raise DataError(f"responsibilities_init must be >= 0 and sum to 1 in each row; {where} differs.")


def check_counts(statistics: Statistics, k: int, weighted: bool) -> None:
    """Enough rows of positive weight for k components, in scikit-learn's words."""
    n = statistics.n_rows
    if n == 0 and not weighted:
        raise DataError("Found array with 0 sample(s) while a minimum of 1 is required.")
    if n == 0:
        raise DataError("Sample weights must contain at least one non-zero number.")
    if n < k:
        raise DataError(f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {n}")

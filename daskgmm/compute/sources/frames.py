"""Data frames: the names of their columns. Their values are read as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskgmm._typing import Array


def feature_names(X: Any) -> Array | None:
    """Column names of a data frame.

    Parameters
    ----------
    X : any input
        The rows as the user passed them.

    Returns
    -------
    ndarray of str objects, or None
        The names where X is a pandas, polars or Dask data frame and every name is a string.

    Raises
    ------
    TypeError
        Where only some of the names are strings, as in scikit-learn.
    """
    if library(X) not in {"pandas", "polars", "dask"} or not hasattr(X, "columns"):
        return None
    names = np.asarray(X.columns, dtype=object)
    kinds = sorted({type(entry).__qualname__ for entry in names})
    if len(kinds) > 1 and "str" in kinds:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {kinds} as feature name / column name types. If you want feature names "
            "to be stored and validated, you must convert them all to strings, by using "
            "X.columns = X.columns.astype(str) for example."
        )
    return names if kinds == ["str"] else None


def library(value: Any) -> str | None:
    """Name the optional library a value comes from, subclasses included, without importing it."""
    roots = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((root for root in roots if root in {"pandas", "polars", "xarray", "dask"}), None)

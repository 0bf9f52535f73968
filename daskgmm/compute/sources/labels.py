"""Names of features and labels of rows, of whatever carries them."""

import uuid
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.sources.base import library
from daskgmm.compute.sources.plain import numbers
from daskgmm.errors import DataError

Names = Callable[[Any], Any]


_NAMES: dict[str | None, Names] = {
    **dict.fromkeys(("pandas", "polars", "dask"), lambda frame: getattr(frame, "columns", None)),
    "pyarrow": lambda table: getattr(table, "column_names", None),
}


def feature_names(X: Any) -> Array | None:
    """Columns of a frame or table, str objects; None where they are no strings.

    Raises
    ------
    TypeError
        Where only some of the names are strings, as in scikit-learn.
    """
    kind = library(X, _NAMES)
    found = None if kind is None else _NAMES[kind](X)
    if found is None:
        return None
    names = np.asarray(found, dtype=object)
    kinds = sorted({type(entry).__qualname__ for entry in names})
    if len(kinds) > 1 and "str" in kinds:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {kinds} as feature name / column name types. If you want feature names "
            "to be stored and validated, you must convert them all to strings, by using "
            "X.columns = X.columns.astype(str) for example."
        )
    return names if kinds == ["str"] else None


def distinct(names: tuple[Any, ...], title: str) -> tuple[str, ...]:
    """Names that a user gave to features, as ``title``; `DataError` unless they are different strings."""
    if not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise DataError(f"{title} must name features by different strings, got {list(names)}.")
    return names


def beside(value: Any, title: str, X: Any, name: str) -> Any:
    """``value``, called ``title``, to be cut as ``X`` is: where both carry row labels, they agree.

    Those of two Dask frames are compared block by block, by `check_part`. Raises `DataError`.
    """
    if _delayed(value) and _delayed(X):
        return value
    if _delayed(X):
        return _first_partition(value, title, X, name)
    ours = _row_labels(X)
    if ours is None:
        return value
    given = title
    if _delayed(value):  # rows whose labels are in memory have room for a column there
        value, given = value.compute(), f"{title}.compute()"
    if (theirs := _row_labels(value)) is not None:
        labels = f'{name}.indexes["{X.dims[0]}"]' if library(X, ("xarray",)) else f"{name}.index"
        if library(value, ("xarray",)):
            remedies = f"Give {given}.sel({value.dims[0]}={labels}).", f"{given}.values"
        else:
            remedies = f"Give {given}.loc[{labels}].", f"{given}.to_numpy()"
        _compare(ours, theirs, title, name, *remedies)
    return value


def check_part(part: Any, column: Any, title: str, index: int) -> None:
    """Raise `DataError` where rows of two Dask frames, in block ``index`` of both, are labelled differently."""
    if hasattr(part, "iloc") and hasattr(column, "iloc"):
        where = f"block {index} of {title}"
        _compare(part.index, column.index, where, "X", "Take both from one frame.", f"{title}.to_dask_array()")


def _delayed(value: Any) -> bool:
    return hasattr(value, "to_dask_array")


def _row_labels(value: Any) -> Any:
    """The pandas Index of the rows; None where they have no labels."""
    if library(value, ("pandas", "xarray")) == "xarray":
        return value.indexes.get(value.dims[0]) if hasattr(type(value), "variable") and value.dims else None
    return getattr(value, "index", None) if hasattr(value, "iloc") else None


def _first_partition(value: Any, title: str, X: Any, name: str) -> Any:
    """A labelled column in memory beside a Dask frame of one partition, as a chunk that tasks compare."""
    if (labels := _row_labels(value)) is None:
        return value
    if X.npartitions > 1:
        raise DataError(
            f"{title} has {len(labels)} row labels, and those of the Dask frame {name} are not known before it is "
            "read. Take both from one frame."
        )
    held = value.to_pandas() if library(value, ("xarray",)) else value
    array, own = numbers(held, title), f"daskgmm-{uuid.uuid4().hex}"
    return da.Array({(own, *(0,) * array.ndim): held}, own, tuple((n,) for n in array.shape), dtype=array.dtype)


def _compare(ours: Any, theirs: Any, title: str, name: str, in_order: str, by_position: str) -> None:
    """Raise `DataError` where labels differ, with how to bring them in order, where they are the same."""
    if len(ours) != len(theirs) or ours.equals(theirs):  # lengths are compared elsewhere, of all columns
        return
    # By number: labels of any types have those, and not all can be compared, or sorted.
    both, _ = ours.append(theirs).factorize(use_na_sentinel=False)
    here, there = both[: len(ours)], both[len(ours) :]
    if np.array_equal(here, there):
        return
    row, same = int(np.argmax(here != there)), np.array_equal(np.sort(here), np.sort(there))
    (label,), (own,) = (index[row : row + 1].tolist() for index in (theirs, ours))
    remedy = in_order if same and theirs.is_unique else "Give those rows."
    raise DataError(
        f"The row labels of {title} are {'in another order than' if same else 'other than'} those of {name}: row "
        f"{row} is {label!r} there, and {own!r} in {name}. {remedy} "
        f"To take {title} by position, give {by_position}."
    )

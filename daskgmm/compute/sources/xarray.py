"""xarray: a DataArray, one of whose dimensions has the features, or a Dataset, whose variables they are.

All other dimensions are stacked into rows. Several of a chunked array are stacked block by block, so that none is
cut or joined. The order of the rows then follows the chunks: what goes with them, and answers for them, are known
by their dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, prod
from numbers import Real
from typing import Any, TypeAlias

import dask.array as da
import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.sources import cf
from daskgmm.compute.sources.base import Asked, check_layout, library
from daskgmm.errors import DataError

Held: TypeAlias = Any
"""A NumPy or a Dask array."""

# What dimensions of features are called, in the singular and in lower case.
FEATURES = {"feature", "variable", "var", "band", "channel", "column", "attribute", "parameter", "component"}


def table(value: Any, asked: Asked) -> "Table":
    """A DataArray or Dataset as rows of features; `DataError` where it cannot be."""
    from xarray import DataArray, Dataset, Variable

    if isinstance(value, (DataArray, Variable)):
        return OneArray(DataArray(value), asked)
    if not isinstance(value, Dataset):
        raise DataError(f"{asked.name} is an xarray {type(value).__name__}, expected a DataArray or a Dataset.")
    if lost := [name for name in asked.variables or () if name not in value.data_vars]:
        raise DataError(f"{asked.name} has no variables {lost}: it has {list(value.data_vars)}.")
    if asked.variables:
        value = value[list(asked.variables)]
    elif isinstance(asked.features, tuple) and {*asked.features} == {*value.data_vars}:
        value = value[list(asked.features)]  # a store has them in the order of the alphabet
    return Variables(value, asked)


def opened(value: Any, asked: Asked) -> Any:
    """The NumPy or Dask array of the rows (n, d); where these need not be, the one inside."""
    if asked.ensure_2d:
        return table(value, asked).stacked()
    if not hasattr(type(value), "data"):  # asked of the type: a value may have to load it
        raise DataError(
            f"{asked.name} is an xarray {type(value).__name__}, expected a DataArray: select a variable."
        )
    return _held(value, asked).data


@dataclass(frozen=True, eq=False)
class Table(ABC):
    """What xarray holds, as rows of features. Nothing is read or copied before it is asked for."""

    value: Any
    asked: Asked

    @property
    @abstractmethod
    def rows(self) -> Any:
        """A DataArray with the dimensions and coordinates of the rows alone; its values mean nothing."""

    @property
    @abstractmethod
    def names(self) -> Array | None:
        """The names of the features, as str objects; None where they have none."""

    @cached_property
    @abstractmethod
    def held(self) -> list[Any]:
        """The variables, of which each is in memory or chunked."""

    @property
    @abstractmethod
    def decoded(self) -> str:
        """How the values follow from those that xarray holds, where they are not these."""

    @property
    def chunked(self) -> bool:
        """Whether any values are not in memory."""
        return any(variable.chunks is not None for variable in self.held)

    @cached_property
    @abstractmethod
    def values(self) -> Held:
        """The values, along the rows' dimensions and then the features."""

    def stacked(self) -> Held:
        """The rows (n, d)."""
        return _stack(self.values, self.rows.ndim)

    def beside(self, given: Any, title: str) -> Any:
        """What goes with the rows, in their order; `DataError` where its dimensions do not tell that."""
        rows = self.rows
        if rows.ndim == 1 or isinstance(given, Real):
            return given
        if library(given, ("xarray",)) is None or not hasattr(given, "variable"):
            raise DataError(
                f"The rows of {self.asked.name} are stacked from the dimensions {rows.dims}: {title} must be a "
                "DataArray with these, or with some of them."
            )
        more = [dim for dim in given.dims if dim not in rows.dims]
        for dim in (dim for dim in rows.dims if dim in given.dims):
            here, there = (each.indexes.get(dim) for each in (rows, given))
            alike = here is None or there is None or here.equals(there)
            if rows.sizes[dim] != given.sizes[dim] or not alike:
                raise DataError(f"{title} and {self.asked.name} differ in their coordinates along {dim!r}.")
        variable = _held(given, self.asked._replace(name=title))
        if self.chunked:
            variable = variable.chunk()
        variable = variable.set_dims({**rows.sizes, **given.sizes}).transpose(*rows.dims, *more)
        if self.chunked:
            variable = variable.chunk(dict(zip(rows.dims, self.values.chunks, strict=False)))
        return _stack(variable.data, rows.ndim)

    def answer(self, values: Held, name: str, missing: float, features: Sequence[str] | None = None) -> Any:
        """Answers for the rows, unstacked, with their coordinates; ``missing`` where a MultiIndex lacks a row.

        Several for each row are those of components, or of ``features``.
        """
        chunks = self.values.chunks[:-1] if isinstance(values, da.Array) else ()
        return unstacked(values, self.rows, chunks, name, missing, features)


class OneArray(Table):
    """A DataArray."""

    @cached_property
    def feature(self) -> Any:
        """The dimension of the features: the one that is asked for, or the second of two."""
        value, name = self.value, self.asked.name
        check_layout(value, ensure_2d=value.ndim == 2 and 0 in value.shape)
        if (asked := self.asked.feature_dim) is not None:
            if asked in value.dims and value.ndim > 1:
                return asked
            raise DataError(
                f"{name} has the dimensions {value.dims}; feature_dim={asked!r} must be one of several."
            )
        likely = [dim for dim in value.dims if str(dim).lower().removesuffix("s") in FEATURES]
        if value.ndim == 2 and likely[-1:] != [value.dims[0]]:
            (n, d), known = value.shape, self.asked.features
            first, last = map(self._names, value.dims)
            named = self.asked.few_rows and first is None and last is not None
            if likely or d <= n or named or d == (len(known) if isinstance(known, tuple) else known):
                return value.dims[1]
        raise DataError(self._recipe(likely))

    def _recipe(self, likely: list[Any]) -> str:
        """Say which call reads the DataArray."""
        value, name = self.value, self.asked.name
        if value.ndim < 2:
            return (
                f"Expected 2D array, got 1D array instead: dimensions {value.dims}.\n"
                f'A single feature becomes a column with {name}.expand_dims("feature", -1)'
            )
        # Bands or variables are usually fewer than pixels or times.
        best = likely[0] if likely else min(value.dims, key=lambda dim: value.sizes[dim])
        return (
            f"Expected 2D array, rows first, got dimensions {dict(value.sizes)}. Say which of them has the "
            f"features of {name}: the others are stacked into rows. If that is {best!r}:\n"
            f"    GaussianMixture(..., feature_dim={best!r})"
        )

    @cached_property
    def rows(self) -> Any:
        theirs = [name for name, coord in self.value.coords.items() if self.feature in coord.dims]
        return self.value.drop_vars(theirs).isel({self.feature: 0}, drop=True)

    @property
    def names(self) -> Array | None:
        return self._names(self.feature)

    def _names(self, dim: Any) -> Array | None:
        """Text along a dimension."""
        index = self.value.indexes.get(dim)
        return None if index is None else _texts(index)

    @cached_property
    def held(self) -> list[Any]:
        return [_held(self.value, self.asked)]

    @property
    def decoded(self) -> str:
        return _understood(self.value, self.asked)[1]

    @cached_property
    def values(self) -> Held:
        return self.held[0].transpose(..., self.feature).data


class Variables(Table):
    """A Dataset."""

    @cached_property
    def rows(self) -> Any:
        name, found = self.asked.name, self.value.data_vars
        if self.asked.feature_dim in self.value.dims:
            raise DataError(
                f"{name} is a Dataset, whose variables are the features, and {self.asked.feature_dim!r} is one of "
                f"its dimensions. Select a variable, as in {name}[{next(iter(found), '...')!r}]."
            )
        odd = [key for key, variable in found.items() if variable.dtype.kind not in "biuf" or not variable.dims]
        dims = {dim for variable in found.values() for dim in variable.dims}
        whole = [key for key, variable in found.items() if set(variable.dims) == dims]
        if odd or not whole:
            told = ", ".join(f"{key} {variable.dims} {variable.dtype}" for key, variable in found.items())
            why = (
                f"{odd} have no numbers along a dimension"
                if odd
                else "none has all dimensions, and gives the rows"
            )
            raise DataError(
                f"The variables of {name} are its features, but {why}: {told}. Select some: {name}[[...]]."
            )
        return found[whole[0]]

    @property
    def names(self) -> Array | None:
        return _texts(self.value.data_vars)

    @cached_property
    def held(self) -> list[Any]:
        return [_held(variable, self.asked) for variable in self.value.data_vars.values()]

    @property
    def decoded(self) -> str:
        told = {name: _understood(variable, self.asked)[1] for name, variable in self.value.data_vars.items()}
        return "; ".join(f"{name} {text}" for name, text in told.items() if text)

    @cached_property
    def values(self) -> Held:
        rows = self.rows
        each = [variable.chunk() for variable in self.held] if self.chunked else self.held
        laid = [variable.set_dims(rows.sizes).transpose(*rows.dims).data for variable in each]
        return (da if self.chunked else np).stack(laid, axis=-1)


def unstacked(
    values: Held, rows: Any, chunks: Any, name: str, missing: float, features: Sequence[str] | None = None
) -> Any:
    """Answers for rows that were stacked, in `chunks` along each dimension; as `Table.answer` tells it."""
    from xarray import DataArray

    wide = values.shape[1:]
    if rows.ndim > 1 and isinstance(values, da.Array):
        whole = ((size,) for size in wide)
        values = da.reshape_blockwise(values, (*rows.shape, *wide), chunks=(*chunks, *whole))
    elif rows.ndim > 1:
        values = values.reshape(*rows.shape, *wide)
    dim = "component" if features is None else "feature"
    while dim in rows.dims or dim in rows.coords:
        dim += "_"
    while name in rows.dims or name in rows.coords:  # no Dataset could hold it
        name += "_"
    answer = DataArray(values, rows.coords, (*rows.dims, *[dim] * len(wide)), name).drop_encoding()
    answer = answer if features is None else answer.assign_coords({dim: list(features)})
    for dim in rows.dims:
        index = rows.indexes.get(dim)
        if index is not None and index.nlevels > 1 and index.is_unique:
            answer = answer.unstack(dim, fill_value=missing)
            if answer.chunks is not None:
                answer = answer.chunk("auto")  # of equal sizes, as stores have them
    return answer


def _stack(values: Held, ndim: int) -> Held:
    """Values with their first axes, so many, in one; chunked ones block by block."""
    if ndim == 1:
        return values
    rest = values.shape[ndim:]
    if not isinstance(values, da.Array):
        return values.reshape(-1, *rest)
    if any(map(isnan, values.shape)):
        raise DataError(
            f"Dimensions of unknown sizes cannot be stacked: {values.shape}. Call compute_chunk_sizes()."
        )
    whole = values.rechunk(dict.fromkeys(range(ndim, values.ndim), -1))
    return da.reshape_blockwise(whole, (prod(values.shape[:ndim]), *rest))


def _texts(names: Any) -> Array | None:
    """Names as str objects; None where there are others."""
    return np.array(list(names), dtype=object) if all(isinstance(name, str) for name in names) else None


def _understood(value: Any, asked: Asked) -> tuple[dict[str, Any], str]:
    """What attributes say that numbers stand for, as of a store: xarray takes them away where it has decoded."""
    # Floats that carry how they were packed are most often unpacked by hand; but what is missing, is.
    found = {name: v for name, v in value.attrs.items() if value.dtype.kind in "iu" or name not in cf.PACKING}
    return cf.understood(found, value.dtype, asked, f"{asked.name} ({getattr(value, 'name', None) or 'xarray'})")


def _held(value: Any, asked: Asked) -> Any:
    """A variable whose ``data`` reads no file: decoded, and chunked where it was opened without chunks."""
    variable, (meant, _) = getattr(value, "variable", value), _understood(value, asked)
    in_memory = variable._in_memory
    if meant:
        variable = cf.lazily(variable, meant)
    if in_memory:
        return variable.load()
    return variable.chunk("auto") if variable.chunks is None else variable

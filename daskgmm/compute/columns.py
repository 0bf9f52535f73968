"""What may go with the rows: how each column is opened, and what a task makes of its values.

To add one, write a class and enter it in `COLUMNS`: `as_rows` then takes it by its name, and every `Block` has it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Real
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.sources import as_source
from daskgmm.compute.sources.base import Asked, Source
from daskgmm.compute.sources.memory import Constant
from daskgmm.errors import DataError

ROUNDING = 1e-6  # of covariances of errors, which may be float32


@dataclass(frozen=True)
class Column:
    """Values that go with the rows.

    Attributes
    ----------
    title : str
        What the user calls them.
    ndim : int
        Of their array.
    once : bool
        Whether only the first pass looks at them.
    """

    title: str
    ndim: int = 1
    once: bool = False

    def open(self, value: Any, x: Source, asked: Asked) -> Source:
        """The values as a source with a row for each row of ``x``, of which this was asked."""
        source = as_source(value, asked._replace(name=self.title, ensure_2d=False, variables=None))
        self.check(source, x.shape[0])
        return source

    def aligned(self, source: Source, x: Source, name: str) -> Source:
        """Cut as ``x`` is, which the user calls ``name``, or paired with its blocks where a size is unknown."""
        if not math.isnan(source.shape[0] + x.shape[0]):
            return source.cut(x.chunks)
        source = source.as_stored()
        if len(source.chunks) != len(x.chunks):
            raise DataError(
                f"{self.title} has {len(source.chunks)} block(s) and {name} has {len(x.chunks)}, and not "
                "all their sizes are known. Give both the same chunks, or call compute_chunk_sizes() "
                "on those that are unknown."
            )
        return source

    def values(self, found: Array, block: Block) -> Array:
        """What a task makes of the values that it read for a block."""
        found = np.asarray(found)
        if len(found) != len(block.x):
            raise DataError(
                f"{self.title} and the rows differ in length in block {block.index}: "
                f"{len(found)} and {len(block.x)}."
            )
        return found

    def settled(self, block: Block, omit_nan: bool, missing_nan: bool) -> Block:
        """The block, with what these values say of its rows; refuses values that cannot be."""
        return block

    def check(self, source: Source, n: float) -> None:
        """Refuse a shape or type that cannot be used beside ``n`` rows."""
        if len(source.shape) != self.ndim:
            raise DataError(f"{self.title} should be {self.ndim}-dimensional, got shape {source.shape}.")
        if not math.isnan(source.shape[0] + n) and source.shape[0] != n:
            raise DataError(f"{self.title}.shape == {source.shape}, expected {(n, *source.shape[1:])}!")


class Weights(Column):
    """One number >= 0 for each row, or one for all."""

    def open(self, value: Any, x: Source, asked: Asked) -> Source:
        if isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0):
            return Constant.of(value, x.chunks)
        return super().open(value, x, asked)

    def values(self, found: Array, block: Block) -> Array:
        weight = np.asarray(found, dtype=np.float64)
        if weight.ndim == 0:
            weight = np.full(len(block.x), weight)
        weight = super().values(weight, block)
        for message, bad in (
            ("Input sample_weight contains infinity", np.isinf(weight)),
            ("Negative values in data passed to sample_weight", weight < 0),
        ):
            if bad.any():
                raise DataError(f"{message}: {block.where(bad)}.")
        return weight

    @staticmethod
    def refuse_nan(block: Block, weight: Array) -> None:
        """Refuse a block of which a weight is missing."""
        if (bad := np.isnan(weight)).any():
            raise DataError(f"Input sample_weight contains NaN: {block.where(bad)}.")

    def check(self, source: Source, n: float) -> None:
        if len(source.shape) != 1:
            raise DataError(
                f"Sample weights must be 1D array or scalar, got {len(source.shape)}D array. Expected "
                f"either a scalar value or a 1D array of length {n}."
            )
        super().check(source, n)


class Labels(Column):
    """One component for each row."""

    def values(self, found: Array, block: Block) -> Array:
        found = super().values(found, block)
        # Integers of which some are missing are floats, and NaN for none: decoded, masked, null or of pandas.
        if found.dtype.kind == "f" and (wrong := ~np.isnan(found) & (np.rint(found) != found)).any():
            raise DataError(f"{self.title} must be integers: {block.where(wrong)} has others.")
        return found

    def check(self, source: Source, n: float) -> None:
        super().check(source, n)
        if source.dtype.kind not in "biuf":
            raise DataError(f"{self.title} must be integers, got dtype {source.dtype}.")


class Known(Labels):
    """The component of each row, or −1 where it is not known; so where a value is missing."""

    def values(self, found: Array, block: Block) -> Array:
        labels = np.nan_to_num(super().values(found, block), nan=-1).astype(np.int64)
        if (bad := (labels < -1) & (True if block.weight is None else block.weight > 0)).any():
            raise DataError(f"{self.title} must be components, or -1 where none is known: {block.where(bad)}.")
        return labels


class Noise(Column):
    """How each row errs: variances of its features, (n, d), or a covariance, (n, d, d)."""

    def open(self, value: Any, x: Source, asked: Asked) -> Source:
        source = super().open(value, x, asked)
        n, d = x.shape
        if source.shape[1:] not in ((d,), (d, d)):
            raise DataError(
                f"noise.shape == {source.shape}, expected {(n, d)}, a variance of each value, or {(n, d, d)}, a "
                "covariance of each row."
            )
        return source

    def values(self, found: Array, block: Block) -> Array:
        found = super().values(found, block)
        return found if found.dtype in (np.float32, np.float64) else found.astype(np.float64)

    def check(self, source: Source, n: float) -> None:
        if not math.isnan(source.shape[0] + n) and source.shape[0] != n:
            super().check(source, n)

    def settled(self, block: Block, omit_nan: bool, missing_nan: bool) -> Block:
        """A value of which the variance is infinite, or NaN, is missing, if values may be."""
        noise = block.columns["noise"]
        variances = noise if noise.ndim == 2 else np.diagonal(noise, axis1=1, axis2=2)
        if omit_nan and np.isnan(noise.min(initial=0.0)):
            bad = np.isnan(noise).reshape(len(noise), -1).any(axis=1)
            block = replace(block, weight=np.where(bad, 0.0, 1.0 if block.weight is None else block.weight))
        if missing_nan and (unknown := ~np.isfinite(variances)).any():
            block = replace(block, x=np.where(unknown, np.nan, block.x))
        for message, bad in _faults(noise, variances, block.x):
            wrong = bad if block.weight is None else bad & (block.weight > 0)
            if wrong.any():
                raise DataError(f"noise {message}: {block.where(wrong)}.")
        return block


def _faults(noise: Array, variances: Array, x: Array) -> Iterator[tuple[str, Array]]:
    """What may be wrong with the errors of values that are there, and in which rows."""
    if not (variances.min(initial=0.0) >= 0 and variances.max(initial=0.0) < np.inf):
        wrong: tuple[tuple[str, Array], ...] = (
            ("holds NaN (nan_policy='omit' leaves such rows out, 'missing' such values)", np.isnan(variances)),
            ("holds infinity (nan_policy='missing' takes such values as missing)", np.isposinf(variances)),
            ("has variances below 0", np.asarray(variances < 0)),
        )
        for message, bad in wrong:
            yield message, np.any(bad & ~np.isnan(x), axis=1)
    if noise.ndim == 2:
        return
    with np.errstate(invalid="ignore"):  # of what is missing, or was told above
        deviations = np.sqrt(variances)
        for i, j in combinations(range(noise.shape[1]), 2):
            here, mirrored = noise[:, i, j], noise[:, j, i]
            sound: Array = np.abs(here) <= (1 + ROUNDING) * deviations[:, i] * deviations[:, j]
            sound &= np.abs(here - mirrored) <= ROUNDING * np.abs(here)
            if not sound.all():
                both = ~np.isnan(x[:, (i, j)]).any(axis=1)
                yield "is no covariance: it is to be symmetric, and positive semidefinite", ~sound & both


COLUMNS: dict[str, Column] = {
    "weight": Weights("sample_weight"),
    "known": Known("known"),
    "labels": Labels("labels_init", once=True),
    "responsibilities": Column("responsibilities_init", ndim=2, once=True),
    "noise": Noise("noise", ndim=2),
}

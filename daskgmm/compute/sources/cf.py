"""Arrays whose attributes say what their numbers stand for: packed, or missing (CF conventions, 2.5.1 and 8.1).

xarray decodes them, block by block; whatever holds such an array asks `decoded` for a source of its values.
"""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from socket import gethostname
from typing import Any, ClassVar

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources.base import Asked, Chunks, Facts, Source
from daskgmm.compute.sources.failures import memory_for
from daskgmm.errors import DataError

FILLS, PACKING = ("missing_value", "_FillValue"), ("scale_factor", "add_offset")
NAMES = (*FILLS, *PACKING, "_Unsigned")
UNSIGNED = {"i": "true", "u": "false"}  # what changes a type, by its kind
TILE = 2**22  # bytes that are decoded at a time: xarray copies them more than once


def decoded(source: Source, attributes: Mapping[str, Any], asked: Asked, place: str) -> Source:
    """The values that an array at a place stands for, by its attributes; the source, where these say nothing.

    `DataError` where xarray is needed and not there, or cannot decode it.
    """
    if not any(name in attributes for name in NAMES):
        return source
    meant, told = understood(attributes, source.dtype, asked, f"{asked.name} at {place}")
    if not meant:
        return source
    return Decoded(
        shape=source.shape,
        dtype=decode(np.empty((0,), source.dtype), meant).dtype,
        chunks=source.chunks,
        in_driver=source.in_driver,
        chunk_bytes=source.chunk_bytes,
        dims=source.dims,
        held=source,
        meant=meant,
        place=place,
        decoded=told,
    )


def understood(
    attributes: Mapping[str, Any], dtype: np.dtype[Any], asked: Asked, here: str
) -> tuple[dict[str, Any], str]:
    """What attributes mean, if they are to be heeded, and how to tell it; `DataError` where they cannot be."""
    if not asked.decode_cf:
        return {}, ""
    raw = "With decode_cf=False (--raw) its numbers are read as they are stored."
    try:
        if not (meant := meaning(attributes, dtype)):
            return {}, ""
        told = ", ".join(f"{name}={np.asarray(value).tolist()!r}" for name, value in meant.items())
        decode(np.empty((0,), dtype), meant)
    except ImportError as error:
        raise DataError(
            f"The {dtype} numbers of {here} stand for others ({told}), which xarray decodes: "
            f"pip install 'daskgmm[xarray]'. {raw}"
        ) from error
    except Exception as error:  # attributes may be anything
        found = {name: attributes[name] for name in NAMES if name in attributes}
        raise DataError(f"{here} cannot be decoded by its attributes {found}: {error}. {raw}") from error
    return meant, f"from {dtype}: {told}"


def meaning(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """The attributes by which numbers of a type stand for others, such as xarray takes them."""
    if dtype.kind not in "iuf":
        return {}
    found: dict[str, Any] = {}
    unsigned = np.ravel(attributes.get("_Unsigned", "")).astype(str)[0].lower()
    if unsigned == UNSIGNED.get(dtype.kind):
        found["_Unsigned"] = str(unsigned)
    for name in (name for name in FILLS if name in attributes):
        given = _numbers(attributes[name])
        if dtype.kind == "f":
            given = given.astype(dtype)  # of more digits, it would equal none of the numbers
        if (fills := given[~np.isnan(given)]).size:  # NaN is missing anyway
            found[name] = fills.item() if fills.size == 1 else fills.tolist()
    for name in (name for name in PACKING if name in attributes):
        (number,) = _numbers(attributes[name])
        # xarray would take the type of a whole number for that of the values, and finds no NaN there.
        found[name] = number if number.dtype == np.float32 else float(number)
    return found


def _numbers(value: Any) -> Array:
    """An attribute's numbers: as such, as text, or as xarray writes a float of Zarr's format 3, in base64."""
    if isinstance(value, str) and len(value) == 12 and value.endswith("="):
        value = struct.unpack("<d", base64.b64decode(value))[0]
    numbers = np.ravel(value)
    return numbers if numbers.dtype.kind in "iuf" else numbers.astype(float)


def decode(values: Any, meant: Mapping[str, Any]) -> Array:
    """What numbers stand for, NaN for what is missing: by xarray."""
    from xarray import Variable

    variable = Variable([f"axis {i}" for i in range(values.ndim)], values)
    found: Array = lazily(variable, meant).values
    return found


def lazily(variable: Any, meant: Mapping[str, Any]) -> Any:
    """What the numbers of xarray's Variable stand for, in another, whose values are not there yet."""
    from xarray import conventions

    told = variable.copy(deep=False)
    told.attrs = dict(meant)
    told.encoding = {name: value for name, value in told.encoding.items() if name not in NAMES}
    return conventions.decode_cf_variable(
        "", told, concat_characters=False, decode_times=False, decode_timedelta=False
    )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Decoded(Source):
    """What the numbers of another source stand for. A part is decoded when its task is evaluated."""

    held: Source
    meant: Mapping[str, Any]
    place: str
    spare: Spare = field(default_factory=Spare)
    keepable: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    @property
    def read_bytes(self) -> float:
        return self.held.read_bytes

    def plan(self, block_bytes: int) -> Chunks:
        return self.held.plan(block_bytes * self.held.row_bytes // self.row_bytes)

    def cut(self, chunks: Chunks) -> "Decoded":
        return replace(self, held=self.held.cut(chunks), chunks=chunks)

    def as_stored(self) -> "Decoded":
        held = self.held.as_stored()
        return replace(self, held=held, chunks=held.chunks)

    def reader(self, index: int, part: Any) -> Array:
        shape = (int(self.chunks[index]), *(int(size) for size in self.shape[1:]))
        what, asks = f"{self.place} cannot be decoded", f": block {index} takes"
        out = memory_for(self.spare, shape, self.dtype, what, asks)
        stored = self.held.reader(index, part)
        rows = max(1, TILE // self.row_bytes)
        for first in range(0, len(out), rows):
            tile = slice(first, first + rows)
            try:
                out[tile] = decode(stored[tile], self.meant)
            except ImportError as error:
                raise DataError(
                    f"{self.place} cannot be decoded on {gethostname()}, where xarray is not installed: {error}. "
                    "Every worker needs it."
                ) from error
        return out

    def facts(self) -> Facts:
        return self.held.facts()

    def check_unchanged(self, title: str) -> None:
        self.held.check_unchanged(title)

"""Data frames and series in memory, of pandas, polars and Arrow."""

from dataclasses import replace
from typing import Any

from daskgmm.compute.sources import memory
from daskgmm.compute.sources.base import Asked, Source
from daskgmm.compute.sources.labels import feature_names
from daskgmm.compute.sources.plain import numbers
from daskgmm.errors import DataError


def opened(value: Any, asked: Asked) -> Source:
    """Their numbers, of the columns that are asked for; `DataError` names columns that hold none."""
    frame, names = chosen(value, asked)
    return replace(memory.opened(numbers(frame, asked.name), asked), names=names)


def chosen(frame: Any, asked: Asked) -> tuple[Any, tuple[str, ...] | None]:
    """The columns of a frame or table that are asked for, and their names; what has no columns is as it is."""
    names = feature_names(frame) if asked.variables else None
    if names is None or asked.variables is None:
        return frame, None
    if lost := [name for name in asked.variables if name not in names]:
        raise DataError(f"{asked.name} has no columns {lost}: it has {names.tolist()}.")
    wanted = list(asked.variables)
    return (frame.select(wanted) if hasattr(frame, "select") else frame[wanted]), asked.variables

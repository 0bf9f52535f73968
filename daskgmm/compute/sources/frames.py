"""Data frames and series in memory, of pandas, polars and Arrow."""

from typing import Any

from daskgmm.compute.sources import memory
from daskgmm.compute.sources.base import Asked, Source
from daskgmm.compute.sources.plain import numbers


def opened(value: Any, asked: Asked) -> Source:
    """Their numbers; `DataError` names columns that hold none."""
    return memory.opened(numbers(value, asked.name), asked)

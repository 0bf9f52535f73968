"""What a value has to be that was read from a file, in few words."""

from math import isfinite

import numpy as np

from daskgmm._typing import Array


def require(sound: bool, told: str) -> None:
    """Raise `ValueError` unless something is sound."""
    if not sound:
        raise ValueError(told)


def at_least(least: float, *numbers: float) -> bool:
    """Whether numbers are finite and no smaller."""
    return all(isfinite(number) and number >= least for number in numbers)


def positive(*numbers: float) -> bool:
    """Whether numbers are finite and above 0."""
    return all(isfinite(number) and number > 0 for number in numbers)


def holds(values: Array, shape: tuple[int, ...], least: float = -np.inf) -> bool:
    """Whether an array has this shape, and finite float64 values no smaller than ``least``."""
    return bool(
        values.dtype == np.float64
        and values.shape == shape
        and np.isfinite(values).all()
        and (values >= least).all()
    )

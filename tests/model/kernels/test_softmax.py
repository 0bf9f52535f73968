"""The exponential and the logarithm that vectorise: within their contract."""

from typing import Any

import numba
import numpy as np
import pytest

from daskgmm.model.kernels.compiling import OPTIONS
from daskgmm.model.kernels.softmax import exp, log

EPS = np.finfo(np.float64).eps


# Helpers have no door to Python: they live in their callers.
_exp: Any = numba.njit(**OPTIONS)(lambda x, peak, out, total: exp(x, 0, peak, out, total))
_log: Any = numba.njit(**OPTIONS)(lambda x, out: log(x, out))


def exponential(x: Any, peak: Any) -> Any:
    """``exp(x - peak)``, which is added to a total as well."""
    out, total = np.empty_like(x)[None], np.ones_like(x)
    _exp(x[None], peak, out, total)
    np.testing.assert_array_equal(total, 1 + out[0])
    return out[0]


@pytest.mark.parametrize(("dtype", "lowest"), [("f8", 707), ("f4", 86)])
def test_exponential(dtype: str, lowest: float) -> None:
    # Contract: (|argument| + 4)·eps of what is not above 0.
    random = np.random.default_rng(0)
    parts = [np.array([0.0, 1e-30, 1e-17]), random.uniform(0, lowest, 5000), random.exponential(1, 5000)]
    peak = random.normal(size=10003).astype(dtype)
    x = (peak - np.concatenate(parts)).astype(dtype)
    out = exponential(x, peak)
    argument = (x - peak).astype(np.longdouble)
    assert np.all(abs(out / np.exp(argument) - 1) <= (abs(argument) + 4) * np.finfo(dtype).eps)
    assert exponential(peak, peak).tolist() == [1.0] * len(peak)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_exponential_of_what_is_far_below_is_zero_and_of_nan_is_nan(dtype: str) -> None:
    far = np.array([-745.0, -1e4, -1e10, -1e19, -1e38, -np.inf, np.nan], dtype=dtype)
    out = exponential(far, np.zeros_like(far))
    np.testing.assert_array_equal(out, [0, 0, 0, 0, 0, 0, np.nan])


def test_logarithm() -> None:
    # Contract: 4·eps·(result + 1) from 1 on.
    random = np.random.default_rng(0)
    y = np.concatenate(
        [[1.0, np.nextafter(1, 2), 2.0, 1.5], random.uniform(1, 2000, 5000), 1 + random.uniform(size=5000)]
    )
    out = np.empty_like(y)
    _log(y, out)
    exact = np.log(y.astype(np.longdouble))
    assert np.all(abs(out - exact) <= 4 * EPS * (exact + 1))
    _log(np.array([np.nan, np.nan]), bad := np.empty(2))
    assert np.all(np.isnan(bad))

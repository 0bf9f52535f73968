"""Responsibilities and log-densities of one tile, with an exponential and a logarithm that vectorise."""

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import inlined
from daskgmm.model.kernels.layouts import Scratch

LN2 = float(np.log(2.0))


@inlined
def exp(x: Array, j: int, peak: Array, out: Array, total: Array) -> None:
    """``out[j] = exp(x[j] - peak)`` for x <= peak, and added to ``total``.

    x - peak = m·log 2 + r, Taylor's polynomial of r, m into the exponent's bits.
    """
    real, wide = out.dtype.type, out.itemsize == 8
    lowest = real(-708.0 if wide else -87.0)  # below lies no normal number; NaN stays NaN
    for t in range(out.shape[1]):
        u = x[j, t] - peak[t]
        v = lowest if u < lowest else u
        m = np.floor(v * real(1.0 / LN2) + real(0.5))
        r = v - m * real(LN2)
        p = real(1.0 / 5040.0)
        if wide:
            p = real(1.0 / 6227020800.0)
            p = p * r + real(1.0 / 479001600.0)
            p = p * r + real(1.0 / 39916800.0)
            p = p * r + real(1.0 / 3628800.0)
            p = p * r + real(1.0 / 362880.0)
            p = p * r + real(1.0 / 40320.0)
            p = p * r + real(1.0 / 5040.0)
        p = p * r + real(1.0 / 720.0)
        p = p * r + real(1.0 / 120.0)
        p = p * r + real(1.0 / 24.0)
        p = p * r + real(1.0 / 6.0)
        p = p * r + real(0.5)
        p = p * r + real(1.0)
        p = p * r + real(1.0)
        # Added to a number whose last bit counts 1, m is in the last bits; there go, with the bias, those of 2**m.
        if wide:
            raised = np.float64(m + (1.5 * 2.0**52 + 1023.0))
            bits = np.int64(raised.view(np.int64) << 52)
            power = real(bits.view(np.float64))
        else:
            raised_single = np.float32(m + np.float32(1.5 * 2.0**23 + 127.0))
            bits_single = np.int32(raised_single.view(np.int32) << 23)
            power = real(bits_single.view(np.float32))
        out[j, t] = real(0.0) if u < lowest else p * power
        total[t] += out[j, t]


@inlined
def log(x: Array, out: Array) -> None:
    """``out = log(x)`` for x >= 1: exponent and mantissa apart, then the series of the inverse tanh."""
    for t in range(len(x)):
        value = np.float64(x[t])
        raw = value.view(np.int64)
        bits = np.int64((raw & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000)
        mantissa = bits.view(np.float64)
        e = np.float64(np.int32(raw >> 52) - 1023)
        s = (mantissa - 1.5) / (mantissa + 1.5)  # log m = log 1.5 + 2 atanh(s), |s| <= 0.2
        q = s * s
        p = 1.0 / 23.0
        p = p * q + 1.0 / 21.0
        p = p * q + 1.0 / 19.0
        p = p * q + 1.0 / 17.0
        p = p * q + 1.0 / 15.0
        p = p * q + 1.0 / 13.0
        p = p * q + 1.0 / 11.0
        p = p * q + 1.0 / 9.0
        p = p * q + 1.0 / 7.0
        p = p * q + 1.0 / 5.0
        p = p * q + 1.0 / 3.0
        p = p * q + 1.0
        out[t] = e * LN2 + (0.4054651081081644 + 2.0 * s * p) if value >= 1.0 else np.nan


@inlined
def softmax(base: float, scratch: Scratch) -> None:
    """Responsibilities, yet to be divided by their sum ``total``, and ``density``, the log-sum-exp."""
    logits, peak, total, density = scratch.logits, scratch.peak, scratch.total, scratch.density
    n = logits.shape[1]
    zero, lowest = logits.dtype.type(0.0), logits.dtype.type(-np.inf)
    for t in range(n):
        peak[t] = logits[0, t]
        total[t] = zero
    for j in range(1, len(logits)):
        for t in range(n):
            peak[t] = logits[j, t] if logits[j, t] > peak[t] else peak[t]
    for t in range(n):  # a row that is infinitely far from all components: density 0, not NaN
        peak[t] = zero if peak[t] == lowest else peak[t]
    for j in range(len(logits)):
        exp(logits, j, peak, scratch.resp, total)
    log(total, density)
    for t in range(n):
        density[t] = -np.inf if total[t] == zero else density[t] + (base + peak[t])


@inlined
def scale(resp: Array, numerator: Array, total: Array) -> None:
    """``resp *= numerator / total``, and 0 where that has no meaning: no weight, or no density."""
    n = resp.shape[1]
    for t in range(n):
        total[t] = numerator[t] / total[t] if numerator[t] != 0.0 and total[t] != 0.0 else 0.0
    for j in range(len(resp)):
        for t in range(n):
            resp[j, t] *= total[t]

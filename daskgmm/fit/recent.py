"""Rows of late, a bounded sample: what online EM looks at before it places a component anew."""

from dataclasses import dataclass
from math import nextafter

import numpy as np

from daskgmm._typing import Array
from daskgmm.fit.survey import uniforms
from daskgmm.model.checks import holds, require
from daskgmm.store.values import storable

ROWS_PER_COMPONENT, MOST_BYTES = 50, 16 * 2**20
TINY = float(np.finfo(np.float64).tiny)


def sample_rows(k: int, d: int) -> int:
    """Rows of late that are kept: as many as seed a stream, within 16 MiB."""
    return max(2 * k, min(ROWS_PER_COMPONENT * k, MOST_BYTES // (8 * d)))


@storable
@dataclass(frozen=True, eq=False)
class Recent:
    """The rows of the ``size`` smallest keys E/w, E exponential and w what the row weighs among all by now.

    Weights fade as those in the published statistics do: keys of what came before are divided by what share of the
    whole is left to it (forward decay: Cormode, Shkapenyuk, Srivastava & Xu 2009).

    Law: ``a + b`` equals the sample of the concatenated rows.
    """

    size: int
    keys: Array  # (m,)
    x: Array  # (m, d) float64

    def check(self) -> None:
        """Raise `ValueError` unless these are rows of a sample."""
        m = len(self.keys)
        require(m <= self.size and self.keys.shape == (m,) and self.keys.dtype == np.float64, "Too many rows.")
        require(bool((self.keys >= 0).all()), "Keys are below 0.")
        require(holds(self.x, (m, *self.x.shape[1:])) and self.x.ndim == 2, "The rows are no numbers.")

    @classmethod
    def of(cls, x: Array, weight: Array | None, size: int, seed: int, stream: int) -> "Recent":
        """Rows of one block: of more than ``size``, one from each part of that many that weigh alike."""
        n, kept = len(x), min(size, len(x) if weight is None else int(np.count_nonzero(weight)))
        uniform = uniforms(seed, stream, 0, 2 * kept)
        if kept < size:
            rows = np.arange(n) if weight is None else np.flatnonzero(weight)
            own = 1.0 if weight is None else weight[rows]
        else:
            ends = None if weight is None else np.cumsum(weight)
            last = float(n) if ends is None else float(ends[-1])
            places = np.minimum((np.arange(kept) + uniform[kept:]) / kept * last, nextafter(last, 0))
            rows = places.astype(np.intp) if ends is None else np.searchsorted(ends, places, side="right")
            own = last / kept
        picked = x.take(rows, axis=0) if x.flags.c_contiguous else x[rows]  # the faster one would copy all others
        with np.errstate(over="ignore"):
            keys = np.maximum(-np.log1p(-uniform[:kept]), TINY) / own
        return cls(size, keys, np.asarray(picked, np.float64))

    def __add__(self, other: "Recent") -> "Recent":
        keys, parts = np.concatenate([self.keys, other.keys]), [self.x, other.x]
        if len(keys) > self.size:
            kept = np.sort(np.argpartition(keys, self.size)[: self.size])
            keys, own = keys.take(kept), np.searchsorted(kept, len(self.x))
            parts = [self.x.take(kept[:own], axis=0), other.x.take(kept[own:] - len(self.x), axis=0)]
        return Recent(self.size, keys, np.concatenate(parts))

    def weighing(self, factor: float) -> "Recent":
        """The same where every row weighs so much more."""
        with np.errstate(divide="ignore", over="ignore"):
            return Recent(self.size, self.keys / factor, self.x)

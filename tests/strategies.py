"""Hypothesis strategies: mixtures of each kind, rows with weights and responsibilities, ways to cut rows."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from hypothesis import strategies as st

from daskgmm.model.mixture import Mixture
from tests.structures import KINDS, draw_mixture, draw_rows

kinds = st.sampled_from(list(KINDS))
seeds = st.integers(0, 2**32 - 1)
offsets = st.sampled_from([0.0, 1.0, -1e3, 1e8])  # of everything: what is about means must not notice


@st.composite
def mixtures(
    draw: st.DrawFn, kind: st.SearchStrategy[str] = kinds, max_components: int = 4, max_features: int = 6
) -> Mixture:
    """Mixtures of any kind; the kind itself is ``mixture.covariance.structure.name``."""
    k, d = draw(st.integers(1, max_components)), draw(st.integers(1, max_features))
    return draw_mixture(draw(kind), k, d, draw(seeds), draw(offsets))


@dataclass(frozen=True)
class Rows:
    """Rows with their weights, a quarter of which are zero, and responsibilities that are none's."""

    x: Any  # (n, d)
    weight: Any  # (n,)
    resp: Any  # (n, k)

    def take(self, part: slice) -> "Rows":
        """Some of the rows."""
        return Rows(self.x[part], self.weight[part], self.resp[part])

    @property
    def share(self) -> Any:
        """What each row counts in each component, (n, k)."""
        return self.weight[:, None] * self.resp


@st.composite
def rows(draw: st.DrawFn, mixture: Mixture, max_rows: int = 300) -> Rows:
    """Rows about a mixture, none too."""
    n, seed = draw(st.integers(0, max_rows)), draw(seeds)
    random = np.random.default_rng(seed)
    return Rows(
        draw_rows(mixture, n, seed),
        random.choice([0.0, 0.25, 1.0, 7.0], size=n),
        random.dirichlet(np.full(mixture.n_components, 0.5), size=n).reshape(n, mixture.n_components),
    )


@st.composite
def chunkings(draw: st.DrawFn, n: int, max_chunks: int = 5, min_chunks: int = 1) -> tuple[int, ...]:
    """Lengths of the parts into which n rows are cut; some may be 0."""
    cuts = sorted(draw(st.lists(st.integers(0, n), min_size=min_chunks - 1, max_size=max_chunks - 1)))
    return tuple(int(length) for length in np.diff([0, *cuts, n]))


def parts(lengths: tuple[int, ...]) -> list[slice]:
    """Where the parts of a chunking lie."""
    return [slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]
